// float32 logits from bfloat16 activations and the bfloat16 head, which is read once and in its plain layout.
#include "products.h"

namespace lorayard::LORAYARD_LEVEL {
namespace {

template <int M>
void tile_logits(const LogitsArgs& a, int64_t row, int64_t token, int64_t num_tokens) {
  const Bf16* x[M];
  float* out[M];
  for (int m = 0; m < M; m++) {
    x[m] = a.x + (row + m) * a.width;
    out[m] = a.out + (row + m) * a.vocab_size + token;
  }
  dot_rows<Bf16, M>(x, a.weight + token * a.width, a.width, a.width, num_tokens, out);
}

}  // namespace

// A block is kBlockMultiple rows of the head: small enough to stay in the first cache for all rows of the batch.
void logits(const LogitsArgs& a, int64_t first, int64_t end) {
  for (int64_t block = first; block < end; block++) {
    int64_t token = block * kBlockMultiple;
    int64_t num_tokens = smaller(kBlockMultiple, a.vocab_size - token);
    int64_t row = 0;
    for (; row + 4 <= a.num_rows; row += 4) tile_logits<4>(a, row, token, num_tokens);
    if (a.num_rows - row == 3) tile_logits<3>(a, row, token, num_tokens);
    if (a.num_rows - row == 2) tile_logits<2>(a, row, token, num_tokens);
    if (a.num_rows - row == 1) tile_logits<1>(a, row, token, num_tokens);
  }
}

}  // namespace lorayard::LORAYARD_LEVEL
