// What each compiled level offers: plain pointers in, ranges of independent work items, no torch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lorayard {

struct Bf16 {
  uint16_t bits;
};

constexpr int kTileRows = 4;        // rows that share one pass over a matrix
constexpr int kMaxRank = 1024;      // per sub-module
constexpr int kEntryColumns = 5;    // of a LoRA table: addresses of A and B, rank, addresses of bias and DoRA terms
constexpr int kRunColumns = 4;      // of a LoRA run: first row, end, slot, expert
constexpr int kSplitTokens = 512;   // a function of the position alone, so results never depend on the cores
constexpr int kLinearBlock = 48;    // outputs that one thread computes in one go
constexpr int kPanelOutputs = 12;   // of these, what is widened at a time, to stay in the first cache for all rows
constexpr int kBlockMultiple = 16;  // cache blocks hold a multiple of this many tokens

struct LoraArgs {
  bool is_bf16;
  void* out;          // [num_rows, out_features]
  const void* x;      // [num_rows, in_features]
  int64_t out_stride, in_features, num_slices;
  const int64_t* tiles;    // [num_tiles, 3]: first row, number of rows, run
  const int64_t* runs;     // [num_runs, kRunColumns]
  const float* scales;     // [num_rows]
  const int64_t* table;    // [num_slots, slot_stride], the module's first entry in slot 0; an expert's entries follow
  int64_t slot_stride;     // another's; an entry is kEntryColumns wide and stands for one slice
  const int64_t* columns;  // [num_slices + 1]
};

struct AttentionArgs {
  bool is_bf16;
  void* qkv;     // [num_tokens, (num_heads + 2 num_kv_heads) head_dim]; q is rotated in place
  void* keys;    // [num_blocks, num_kv_heads, block_size, head_dim]
  void* values;  // the same
  const void* cos;  // [num_tokens, rotary_dim]
  const void* sin;  // [num_tokens, rotary_dim], the first half negated
  void* out;        // [num_tokens, num_heads head_dim]
  const int32_t* spans;         // [num_seqs, 3]: first row, number of rows, position of the first row
  const int32_t* block_tables;  // [num_seqs, max_blocks]
  const int32_t* token_seqs;    // [num_span_rows]: the span of every row, rows counted over the spans
  const int32_t* token_rows;    // [num_span_rows]: its row within the span
  const int64_t* first_items;   // [num_seqs + 1]: attention items before each span
  float* partials;              // [num_items, kTileRows, head_dim + 2] where some span has several splits
  const float* q_norm;  // [head_dim], or null: queries are not normed before they are rotated
  const float* k_norm;  // the same for keys
  const float* sinks;   // [num_heads], each in its head's denominators, or null
  int64_t num_seqs, max_blocks, num_heads, num_kv_heads, head_dim, rotary_dim, block_size;
  int64_t window;  // a row sees that many positions, its own included; 0: all
  float scale, softcap, norm_eps;  // softcap 0: none
};

inline int64_t num_groups(const AttentionArgs& a, int64_t seq) {
  int64_t pairs = a.spans[3 * seq + 1] * (a.num_heads / a.num_kv_heads);
  return (pairs + kTileRows - 1) / kTileRows;
}
inline int64_t num_splits(const AttentionArgs& a, int64_t seq) {
  int64_t tokens = a.spans[3 * seq + 2] + a.spans[3 * seq + 1];
  return (tokens + kSplitTokens - 1) / kSplitTokens;
}

struct NormArgs {
  bool is_bf16;
  void* residual;     // [num_rows, width]; delta is added in place
  const void* delta;  // [num_rows, width] or null
  const float* weight;
  void* out;
  int64_t width;
  float eps;
};

struct GateArgs {
  bool is_bf16;
  const void* gate_up;  // [num_rows, 2 width]
  void* out;            // [num_rows, width]
  int64_t width;
};

struct ClampedGateArgs {
  bool is_bf16;
  const void* gate_up;  // [num_rows, 2 width], gate and up in turns
  void* out;            // [num_rows, width]
  int64_t width;
  float alpha, limit;
};

struct LinearArgs {
  const Bf16* x;        // [num_rows, in_features]
  const float* wide_x;  // the same where `widens`, else null
  const Bf16* weight;   // [out_features, in_features]
  const float* bias;    // [out_features] or null
  void* out;            // [num_rows, out_features]
  bool is_float_out;
  int64_t num_rows, in_features, out_features;
};

struct QuantizedArgs {
  bool is_bf16;
  const void* x;         // [num_rows, in_features]
  const uint8_t* codes;  // [out_features, row_bytes]
  const float* scales;   // [num_blocks]; block k holds weights k block to (k + 1) block, counted along the rows
  const uint8_t* zeros;  // [num_blocks] or null
  const float* table;    // [16] where bits is 4
  const void* bias;      // [out_features] or null
  void* out;             // [num_rows, out_features], rows out_stride apart
  int64_t bits, block, row_bytes, num_rows, in_features, out_features, out_stride;
  bool is_aligned;  // rows and blocks are multiples of 16 weights
};

#define LORAYARD_DECLARE_LEVEL(level)                                          \
  namespace level {                                                            \
  void lora_add(const LoraArgs&, int64_t first_tile, int64_t end_tile);        \
  void rotate_and_store(const AttentionArgs&, int64_t first, int64_t end);     \
  void attend(const AttentionArgs&, int64_t first_item, int64_t end_item);     \
  void merge_splits(const AttentionArgs&, int64_t first_seq, int64_t end_seq); \
  void add_rms_norm(const NormArgs&, int64_t first_row, int64_t end_row);      \
  void swiglu(const GateArgs&, int64_t first_row, int64_t end_row);            \
  void geglu(const GateArgs&, int64_t first_row, int64_t end_row);             \
  void clamped_swiglu(const ClampedGateArgs&, int64_t first, int64_t end);     \
  bool widens(int64_t num_rows);                                               \
  void linear(const LinearArgs&, float* scratch, int64_t first, int64_t end);  \
  void quantized_linear(const QuantizedArgs&, void* scratch, int64_t first, int64_t end);\
  }

LORAYARD_DECLARE_LEVEL(avx512)
LORAYARD_DECLARE_LEVEL(avx2)

}  // namespace lorayard
