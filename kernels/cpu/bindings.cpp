// The kernels as torch operators: checks, dispatch to the best level, and torch's own threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels.h"

namespace {

using at::Tensor;
using namespace lorayard;

// Every operator is there once per level, as an overload of that name: who resolves one has chosen its instructions.
enum class Level { avx2, avx512 };

#define CALL(kernel, ...)                     \
  if constexpr (kLevel == Level::avx512) {    \
    lorayard::avx512::kernel(__VA_ARGS__);    \
  } else {                                    \
    lorayard::avx2::kernel(__VA_ARGS__);      \
  }

// Tests compile a library whose avx512 kernels need AVX2 alone. It has no others, and stands beside ours.
#ifdef LORAYARD_EMULATED_AVX512
#define LORAYARD_LIBRARY lorayard_emulated
constexpr bool kIsEmulated = true;
#else
#define LORAYARD_LIBRARY lorayard
constexpr bool kIsEmulated = false;
#endif
#define IN_LIBRARY(define, ...) define(__VA_ARGS__)  // expands LORAYARD_LIBRARY, which torch's macros do not

// The best level of this processor: "avx512_bf16", "avx2" or "none".
std::string best_level() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return "none";
  if (kIsEmulated) return "avx512_bf16";
  bool all = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bf16");
  return all ? "avx512_bf16" : "avx2";
}

bool is_bf16(const Tensor& x, const char* name) {
  TORCH_CHECK(x.device().is_cpu() && x.is_contiguous(), name, " must be contiguous, in CPU memory");
  bool bf16 = x.scalar_type() == at::kBFloat16;
  TORCH_CHECK(bf16 || x.scalar_type() == at::kFloat, name, " is ", x.scalar_type(), "; give float32 or bfloat16");
  return bf16;
}

void check_like(const Tensor& x, const Tensor& model, const char* name) {
  TORCH_CHECK(x.scalar_type() == model.scalar_type() && x.is_contiguous(), name, " must be contiguous ", model.scalar_type());
}

template <class T>
const T* ints(const Tensor& x, int64_t columns, const char* name) {
  TORCH_CHECK(x.is_contiguous() && x.numel() % columns == 0, name, " has shape ", x.sizes(), "; rows of ", columns, " needed");
  return x.const_data_ptr<T>();
}

const float* norm_weight(const Tensor& x, int64_t width, const char* name) {
  TORCH_CHECK(x.device().is_cpu() && x.is_contiguous() && x.scalar_type() == at::kFloat && x.numel() == width,
              name, " is ", x.scalar_type(), " ", x.sizes(), "; give contiguous float32 [", width, "]");
  return x.const_data_ptr<float>();
}

// How many items make a range worth a thread, of so many multiply-adds each: below some 20 us, waking one costs more than
// it does, and the whole step waits if its processor is at something else.
int64_t grain_of(int64_t multiply_adds) {
  constexpr int64_t kEnough = 1 << 18;
  return std::max<int64_t>(1, kEnough / std::max<int64_t>(1, multiply_adds));
}

constexpr int64_t kPackedRows = 32;

template <Level kLevel>
void lora_add(Tensor& out, const Tensor& x, const Tensor& runs, const Tensor& scales, const Tensor& table,
              int64_t first_entry, const Tensor& columns) {
  bool bf16 = is_bf16(out, "out");
  check_like(x, out, "x");
  TORCH_CHECK(table.dim() == 3 && table.size(2) == kEntryColumns && x.size(0) == out.size(0), "x or the table does not fit");
  int64_t num_slices = columns.numel() - 1, num_slots = table.size(0), slot_stride = table.size(1) * kEntryColumns;
  int64_t num_experts = num_slices > 0 && first_entry >= 0 ? (table.size(1) - first_entry) / num_slices : 0;
  TORCH_CHECK(scales.scalar_type() == at::kFloat && scales.is_contiguous() && scales.numel() == x.size(0),
              "one float32 scale per row needed");
  const int64_t* cut = ints<int64_t>(runs, kRunColumns, "runs");
  const int64_t *entries = ints<int64_t>(table, kEntryColumns, "table") + first_entry * kEntryColumns, *bounds = ints<int64_t>(columns, 1, "columns");
  std::vector<int64_t> tiles;
  int64_t work = 0;
  for (int64_t i = 0; i < runs.size(0); i++, cut += kRunColumns) {
    TORCH_CHECK(0 <= cut[0] && cut[1] <= x.size(0) && 0 <= cut[2] && cut[2] < num_slots && 0 <= cut[3] && cut[3] < num_experts,
                "run ", i, " leaves the batch or the table");
    for (int64_t row = cut[0]; row < cut[1]; row += kTileRows)
      tiles.insert(tiles.end(), {row, std::min<int64_t>(kTileRows, cut[1] - row), i});
    const int64_t* adapter = entries + cut[2] * slot_stride + cut[3] * num_slices * kEntryColumns;
    for (int64_t s = 0; s < num_slices; s++)
      work += (cut[1] - cut[0]) * adapter[s * kEntryColumns + 2] * (x.size(1) + bounds[s + 1] - bounds[s]);
  }
  LoraArgs args{bf16, out.mutable_data_ptr(), x.const_data_ptr(), out.size(1), x.size(1), num_slices, tiles.data(),
                ints<int64_t>(runs, kRunColumns, "runs"), scales.const_data_ptr<float>(),
                entries, slot_stride, bounds};
  int64_t num_tiles = static_cast<int64_t>(tiles.size()) / 3;
  at::parallel_for(0, num_tiles, grain_of(work / std::max<int64_t>(1, num_tiles)),
                   [&](int64_t first, int64_t end) { CALL(lora_add, args, first, end); });
}

template <Level kLevel>
Tensor paged_attention(Tensor& qkv, Tensor& keys, Tensor& values, const Tensor& cos, const Tensor& sin, const Tensor& spans,
                       const Tensor& block_tables, double scale, int64_t window, double softcap,
                       const std::optional<Tensor>& q_norm, const std::optional<Tensor>& k_norm, double norm_eps,
                       const std::optional<Tensor>& sinks) {
  bool bf16 = is_bf16(qkv, "qkv");
  for (const Tensor* like : {&static_cast<const Tensor&>(keys), &static_cast<const Tensor&>(values), &cos, &sin})
    check_like(*like, qkv, "keys, values, cos and sin");
  int64_t num_tokens = qkv.size(0), num_kv_heads = keys.size(1), block_size = keys.size(2), head_dim = keys.size(3);
  int64_t num_heads = qkv.size(1) / head_dim - 2 * num_kv_heads, num_seqs = spans.size(0);
  TORCH_CHECK(block_size % kBlockMultiple == 0 && kSplitTokens % block_size == 0, "block_size is ", block_size);
  int64_t rotary_dim = cos.dim() == 2 ? cos.size(1) : 0;
  TORCH_CHECK(cos.size(0) == num_tokens && sin.sizes() == cos.sizes() && rotary_dim % 2 == 0 && 0 < rotary_dim && rotary_dim <= head_dim,
              "cos and sin must be [num_tokens, rotary_dim], rotary_dim even and at most ", head_dim);
  TORCH_CHECK(window >= 0 && softcap >= 0.0, "window is ", window, " and softcap ", softcap, "; give 0 for none");
  TORCH_CHECK(num_heads > 0 && num_heads % num_kv_heads == 0 && block_tables.size(0) == num_seqs, "qkv or block_tables do not fit");
  AttentionArgs args{};
  args.is_bf16 = bf16;
  args.qkv = qkv.mutable_data_ptr();
  args.keys = keys.mutable_data_ptr();
  args.values = values.mutable_data_ptr();
  args.cos = cos.const_data_ptr();
  args.sin = sin.const_data_ptr();
  args.spans = ints<int32_t>(spans, 3, "spans");
  args.block_tables = ints<int32_t>(block_tables, 1, "block_tables");
  args.num_seqs = num_seqs;
  args.max_blocks = block_tables.size(1);
  args.num_heads = num_heads;
  args.num_kv_heads = num_kv_heads;
  args.head_dim = head_dim;
  args.rotary_dim = rotary_dim;
  args.block_size = block_size;
  args.window = window;
  args.scale = static_cast<float>(scale);
  args.softcap = static_cast<float>(softcap);
  args.norm_eps = static_cast<float>(norm_eps);
  args.q_norm = q_norm ? norm_weight(*q_norm, head_dim, "q_norm") : nullptr;
  args.k_norm = k_norm ? norm_weight(*k_norm, head_dim, "k_norm") : nullptr;
  args.sinks = sinks ? norm_weight(*sinks, num_heads, "sinks") : nullptr;
  std::vector<int32_t> token_seqs, token_rows;
  std::vector<int64_t> first_items{0};
  int64_t work = 0;
  bool is_split = false;
  for (int64_t seq = 0; seq < num_seqs; seq++) {
    const int32_t* span = args.spans + 3 * seq;
    TORCH_CHECK(span[0] >= 0 && span[1] > 0 && span[0] + span[1] <= num_tokens, "span ", seq, " leaves the batch");
    TORCH_CHECK(span[2] >= 0 && span[2] + span[1] <= args.max_blocks * block_size, "span ", seq, " leaves its block table");
    for (int32_t row = 0; row < span[1]; row++) {
      token_seqs.push_back(static_cast<int32_t>(seq));
      token_rows.push_back(row);
    }
    first_items.push_back(first_items.back() + num_kv_heads * num_groups(args, seq) * num_splits(args, seq));
    work += (first_items[seq + 1] - first_items[seq]) * 2 * kTileRows * head_dim * std::min<int64_t>(span[2] + span[1], kSplitTokens);
    is_split |= num_splits(args, seq) > 1;
  }
  args.token_seqs = token_seqs.data();
  args.token_rows = token_rows.data();
  args.first_items = first_items.data();
  int64_t num_rows = static_cast<int64_t>(token_seqs.size());
  // Rows of no span are padding: they must not carry what the memory held before.
  Tensor out = num_rows == num_tokens ? at::empty({num_tokens, num_heads * head_dim}, qkv.options())
                                      : at::zeros({num_tokens, num_heads * head_dim}, qkv.options());
  args.out = out.mutable_data_ptr();
  Tensor partials;
  if (is_split) {
    partials = at::empty({first_items.back(), kTileRows, head_dim + 2}, qkv.options().dtype(at::kFloat));
    args.partials = partials.mutable_data_ptr<float>();
  }
  at::parallel_for(0, num_rows, grain_of(8 * qkv.size(1)), [&](int64_t first, int64_t end) { CALL(rotate_and_store, args, first, end); });
  int64_t grain = grain_of(work / std::max<int64_t>(1, first_items.back()));
  at::parallel_for(0, first_items.back(), grain, [&](int64_t first, int64_t end) { CALL(attend, args, first, end); });
  if (is_split) at::parallel_for(0, num_seqs, 1, [&](int64_t first, int64_t end) { CALL(merge_splits, args, first, end); });
  return out;
}

template <Level kLevel>
Tensor add_rms_norm(Tensor& residual, const std::optional<Tensor>& delta, const Tensor& weight, double eps) {
  bool bf16 = is_bf16(residual, "residual");
  TORCH_CHECK(residual.dim() == 2, "residual is ", residual.sizes(), "; give [num_rows, width]");
  if (delta) {
    check_like(*delta, residual, "delta");
    TORCH_CHECK(delta->sizes() == residual.sizes(), "delta is ", delta->sizes(), ", residual ", residual.sizes());
  }
  Tensor out = at::empty(residual.sizes(), residual.options());
  NormArgs args{bf16, residual.mutable_data_ptr(), delta ? delta->const_data_ptr() : nullptr,
                norm_weight(weight, residual.size(1), "weight"), out.mutable_data_ptr(), residual.size(1), static_cast<float>(eps)};
  at::parallel_for(0, residual.size(0), grain_of(8 * residual.size(1)), [&](int64_t first, int64_t end) { CALL(add_rms_norm, args, first, end); });
  return out;
}

template <class Gate>
Tensor gated(const Tensor& gate_up, Gate gate) {
  bool bf16 = is_bf16(gate_up, "gate_up");
  TORCH_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0, "gate_up is ", gate_up.sizes(), "; give [num_rows, 2 width]");
  Tensor out = at::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options());
  GateArgs args{bf16, gate_up.const_data_ptr(), out.mutable_data_ptr(), out.size(1)};
  at::parallel_for(0, out.size(0), grain_of(16 * out.size(1)), [&](int64_t first, int64_t end) { gate(args, first, end); });
  return out;
}

template <Level kLevel>
Tensor swiglu(const Tensor& gate_up) {
  return gated(gate_up, [](const GateArgs& args, int64_t first, int64_t end) { CALL(swiglu, args, first, end); });
}

template <Level kLevel>
Tensor geglu(const Tensor& gate_up) {
  return gated(gate_up, [](const GateArgs& args, int64_t first, int64_t end) { CALL(geglu, args, first, end); });
}

template <Level kLevel>
Tensor clamped_swiglu(const Tensor& gate_up, double alpha, double limit) {
  bool bf16 = is_bf16(gate_up, "gate_up");
  TORCH_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0, "gate_up is ", gate_up.sizes(), "; give [num_rows, 2 width]");
  TORCH_CHECK(limit > 0.0, "limit is ", limit, "; give a positive one");
  Tensor out = at::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options());
  ClampedGateArgs args{bf16, gate_up.const_data_ptr(), out.mutable_data_ptr(), out.size(1), static_cast<float>(alpha),
                       static_cast<float>(limit)};
  at::parallel_for(0, out.size(0), grain_of(16 * out.size(1)), [&](int64_t first, int64_t end) { CALL(clamped_swiglu, args, first, end); });
  return out;
}

template <Level kLevel>
Tensor multiplied(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, at::ScalarType out_type) {
  TORCH_CHECK(is_bf16(x, "x") && is_bf16(weight, "weight"), "give x and weight in bfloat16");
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1), "x is ", x.sizes(), ", weight ", weight.sizes());
  if (bias) TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "bias is ", bias->sizes(), ", weight ", weight.sizes());
  Tensor out = at::empty({x.size(0), weight.size(0)}, x.options().dtype(out_type)), wide_x, wide_bias;
  LinearArgs args{};
  if constexpr (kLevel == Level::avx2)
    if (lorayard::avx2::widens(x.size(0))) wide_x = x.to(at::kFloat);
  if (bias) wide_bias = bias->to(at::kFloat).contiguous();
  args.x = static_cast<const Bf16*>(x.const_data_ptr());
  args.wide_x = wide_x.defined() ? wide_x.const_data_ptr<float>() : nullptr;
  args.weight = static_cast<const Bf16*>(weight.const_data_ptr());
  args.bias = bias ? wide_bias.const_data_ptr<float>() : nullptr;
  args.out = out.mutable_data_ptr();
  args.is_float_out = out_type == at::kFloat;
  args.num_rows = x.size(0);
  args.in_features = x.size(1);
  args.out_features = weight.size(0);
  int64_t num_blocks = args.num_rows ? (args.out_features + kLinearBlock - 1) / kLinearBlock : 0;
  int64_t grain = grain_of(kLinearBlock * args.in_features * (args.num_rows + 4));
  at::parallel_for(0, num_blocks, grain, [&](int64_t first, int64_t end) {
    std::vector<float> scratch(args.wide_x ? static_cast<size_t>(kPanelOutputs * args.in_features) : 0);
    CALL(linear, args, scratch.data(), first, end);
  });
  return out;
}

template <Level kLevel>
Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  return multiplied<kLevel>(x, weight, bias, at::kBFloat16);
}

template <Level kLevel>
Tensor logits(const Tensor& x, const Tensor& weight) {
  return multiplied<kLevel>(x, weight, std::nullopt, at::kFloat);
}

// Whether oneDNN multiplies bfloat16 on AMX, as far as its settings let it.
bool has_tiles() { return at::native::cpublas::could_pack(at::kBFloat16); }

// x W^T in float32 by oneDNN, W in blocks of outputs as `pack_head` lays them out: pairs of rows in turns if `in_pairs`, as
// tiles read them. Without it any processor can, slowly.
Tensor packed_logits(const Tensor& x, const Tensor& packed, int64_t vocab_size, bool in_pairs) {
  TORCH_CHECK(is_bf16(x, "x") && is_bf16(packed, "packed"), "give x and packed in bfloat16");
  TORCH_CHECK(x.dim() == 2 && packed.dim() == 3 && packed.size(1) == x.size(1) && (!in_pairs || x.size(1) % 2 == 0), "x is ",
              x.sizes(), ", packed ", packed.sizes(), "; give [num_rows, width] and [num_blocks, width, block]");
  int64_t num_rows = x.size(0), width = x.size(1), num_blocks = packed.size(0), block = packed.size(2);
  TORCH_CHECK((num_blocks - 1) * block < vocab_size && vocab_size <= num_blocks * block, "vocab_size is ", vocab_size, ", packed ",
              packed.sizes());
  Tensor out = at::empty({num_rows, vocab_size}, x.options().dtype(at::kFloat));
  const at::BFloat16 *rows = x.const_data_ptr<at::BFloat16>(), *weights = packed.const_data_ptr<at::BFloat16>();
  float* logits = out.mutable_data_ptr<float>();
  at::parallel_for(0, num_rows ? num_blocks : 0, grain_of(block * width * (num_rows + 4)), [&](int64_t first, int64_t end) {
    std::vector<float> rest(static_cast<size_t>(kPackedRows * block));
    for (int64_t b = first; b < end; b++)
      for (int64_t row = 0; row < num_rows; row += kPackedRows) {
        int64_t count = std::min<int64_t>(kPackedRows, num_rows - row), some = std::min<int64_t>(block, vocab_size - b * block);
        float *at = logits + row * vocab_size + b * block, *to = some == block ? at : rest.data();
        at::native::cpublas::brgemm(count, block, width, width, block, some == block ? vocab_size : block, false,
                                    rows + row * width, weights + b * width * block, to, in_pairs);
        if (some == block) continue;
        for (int64_t i = 0; i < count; i++) std::copy_n(to + i * block, some, at + i * vocab_size);
      }
    at::native::cpublas::brgemm_release(in_pairs);
  });
  return out;
}

template <Level kLevel>
void quantized_linear(Tensor& out, int64_t first_column, const Tensor& x, const Tensor& codes, const Tensor& scales,
                      const std::optional<Tensor>& zeros, const std::optional<Tensor>& table, const std::optional<Tensor>& bias,
                      int64_t block) {
  QuantizedArgs args{};
  args.is_bf16 = is_bf16(out, "out");
  check_like(x, out, "x");
  TORCH_CHECK(x.dim() == 2 && out.dim() == 2 && codes.dim() == 2 && x.size(0) == out.size(0), "x, out and codes must be matrices");
  TORCH_CHECK(codes.scalar_type() == at::kByte && codes.is_contiguous(), "codes must be contiguous uint8");
  args.bits = table ? 4 : 8;
  args.num_rows = x.size(0);
  args.in_features = x.size(1);
  args.out_features = codes.size(0);
  args.row_bytes = codes.size(1);
  args.block = block;
  args.is_aligned = args.in_features % 16 == 0 && block % 16 == 0;
  int64_t num_weights = args.in_features * args.out_features;
  TORCH_CHECK(args.row_bytes == (table ? (args.in_features + 31) / 32 * 16 : args.in_features), "a row of codes has ", args.row_bytes,
              " bytes for ", args.in_features, " columns");
  TORCH_CHECK(0 <= first_column && first_column + args.out_features <= out.size(1), "the outputs leave out, ", out.sizes());
  TORCH_CHECK(block > 0 && scales.scalar_type() == at::kFloat && scales.is_contiguous() &&
                  scales.numel() == (num_weights + block - 1) / block,
              "one float32 scale per block of ", block, " weights needed");
  if (zeros) TORCH_CHECK(zeros->scalar_type() == at::kByte && zeros->is_contiguous() && zeros->sizes() == scales.sizes(),
                         "one uint8 zero per scale needed");
  if (table) TORCH_CHECK(table->scalar_type() == at::kFloat && table->is_contiguous() && table->numel() == 16, "table must be float32 [16]");
  if (bias) {
    check_like(*bias, out, "bias");
    TORCH_CHECK(bias->numel() == args.out_features, "bias is ", bias->sizes());
  }
  int64_t item_bytes = out.element_size();
  args.x = x.const_data_ptr();
  args.codes = codes.const_data_ptr<uint8_t>();
  args.scales = scales.const_data_ptr<float>();
  args.zeros = zeros ? zeros->const_data_ptr<uint8_t>() : nullptr;
  args.table = table ? table->const_data_ptr<float>() : nullptr;
  args.bias = bias ? bias->const_data_ptr() : nullptr;
  args.out = static_cast<char*>(out.mutable_data_ptr()) + first_column * item_bytes;
  args.out_stride = out.size(1);
  int64_t num_blocks = (args.out_features + kBlockMultiple - 1) / kBlockMultiple;
  at::parallel_for(0, args.num_rows ? num_blocks : 0, 1, [&](int64_t first, int64_t end) {
    std::vector<char> scratch(static_cast<size_t>(kBlockMultiple * args.in_features * item_bytes));
    CALL(quantized_linear, args, scratch.data(), first, end);
  });
}

}  // namespace

IN_LIBRARY(TORCH_LIBRARY, LORAYARD_LIBRARY, m) {
  m.def("best_level() -> str", &best_level);
  m.def("has_tiles.avx512_bf16() -> bool", &has_tiles);
  m.def("packed_logits.avx512_bf16(Tensor x, Tensor packed, int vocab_size, bool in_pairs) -> Tensor");
  for (const std::string level : {"avx2", "avx512_bf16"}) {
    auto define = [&](const std::string& name, const std::string& rest) { m.def((name + "." + level + rest).c_str()); };
    define("lora_add", "(Tensor(a!) out, Tensor x, Tensor runs, Tensor scales, Tensor table, int first_entry, Tensor columns) -> ()");
    define("paged_attention",
           "(Tensor(a!) qkv, Tensor(b!) keys, Tensor(c!) values, Tensor cos, Tensor sin, Tensor spans, "
           "Tensor block_tables, float scale, int window=0, float softcap=0.0, Tensor? q_norm=None, Tensor? k_norm=None, "
           "float norm_eps=0.0, Tensor? sinks=None) -> Tensor");
    define("add_rms_norm", "(Tensor(a!) residual, Tensor? delta, Tensor weight, float eps) -> Tensor");
    define("swiglu", "(Tensor gate_up) -> Tensor");
    define("geglu", "(Tensor gate_up) -> Tensor");
    define("clamped_swiglu", "(Tensor gate_up, float alpha, float limit) -> Tensor");
    define("linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
    define("logits", "(Tensor x, Tensor weight) -> Tensor");
    define("quantized_linear",
           "(Tensor(a!) out, int first_column, Tensor x, Tensor codes, Tensor scales, Tensor? zeros, Tensor? table, "
           "Tensor? bias, int block) -> ()");
  }
}

template <Level kLevel>
void implement(torch::Library& m, const std::string& level) {
  auto name = [&](const char* op) { return op + ("." + level); };
  m.impl(name("lora_add").c_str(), &lora_add<kLevel>);
  m.impl(name("paged_attention").c_str(), &paged_attention<kLevel>);
  m.impl(name("add_rms_norm").c_str(), &add_rms_norm<kLevel>);
  m.impl(name("swiglu").c_str(), &swiglu<kLevel>);
  m.impl(name("geglu").c_str(), &geglu<kLevel>);
  m.impl(name("clamped_swiglu").c_str(), &clamped_swiglu<kLevel>);
  m.impl(name("linear").c_str(), &linear<kLevel>);
  m.impl(name("logits").c_str(), &logits<kLevel>);
  m.impl(name("quantized_linear").c_str(), &quantized_linear<kLevel>);
}

IN_LIBRARY(TORCH_LIBRARY_IMPL, LORAYARD_LIBRARY, CPU, m) {
  if constexpr (!kIsEmulated) implement<Level::avx2>(m, "avx2");
  implement<Level::avx512>(m, "avx512_bf16");
  m.impl("packed_logits.avx512_bf16", &packed_logits);
}
