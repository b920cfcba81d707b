// out = x W^T + bias, W in bfloat16, read once and in its plain layout; sums in float32, which logits stay.
#include "products.h"

namespace lorayard::LORAYARD_LEVEL {
namespace {

template <class Out>
void store_sums(const LinearArgs& a, const float* sums, int64_t row, int64_t column, int64_t num_columns) {
  Out* out = static_cast<Out*>(a.out) + row * a.out_features + column;
  for (int64_t c = 0; c < num_columns; c += kLanes) {
    int64_t n = smaller(kLanes, num_columns - c);
    Vec v = load(sums + c, n);
    if (a.bias) v = add(v, load(a.bias + column + c, n));
    store(out + c, v, n);
  }
}

template <class Out, int M>
void multiply_rows(const LinearArgs& a, const float* panel, int64_t row, int64_t column, int64_t num_columns) {
  float sums[M][kLinearBlock];
  float* to[M];
  for (int m = 0; m < M; m++) to[m] = sums[m];
#ifndef LORAYARD_AVX512
  if (panel) {
    const float* x[M];
    for (int m = 0; m < M; m++) x[m] = a.wide_x + (row + m) * a.in_features;
    multiply_panel<M>(x, panel, a.in_features, num_columns, to);
  }
#endif
  if (!panel) {
    const Bf16* x[M];
    for (int m = 0; m < M; m++) x[m] = a.x + (row + m) * a.in_features;
    dot_rows<Bf16, M>(x, a.weight + column * a.in_features, a.in_features, a.in_features, num_columns, to);
  }
  for (int m = 0; m < M; m++) store_sums<Out>(a, sums[m], row + m, column, num_columns);
}

template <class Out>
void multiply_columns(const LinearArgs& a, float* scratch, int64_t column, int64_t num_columns) {
  const float* panel = a.wide_x ? scratch : nullptr;
#ifndef LORAYARD_AVX512
  if (panel) widen_all(a.weight + column * a.in_features, num_columns * a.in_features, scratch);
#endif
  int64_t row = 0;
  for (; row + 4 <= a.num_rows; row += 4) multiply_rows<Out, 4>(a, panel, row, column, num_columns);
  if (a.num_rows - row == 3) multiply_rows<Out, 3>(a, panel, row, column, num_columns);
  if (a.num_rows - row == 2) multiply_rows<Out, 2>(a, panel, row, column, num_columns);
  if (a.num_rows - row == 1) multiply_rows<Out, 1>(a, panel, row, column, num_columns);
}

}  // namespace

// Whether so many rows are worth widening the weights for; rows have the same bits either way.
bool widens(int64_t num_rows) { return kLanes == 8 && num_rows > 8; }

// A block is kLinearBlock outputs; `scratch` has room for the weights of kPanelOutputs in float32 where `widens`.
void linear(const LinearArgs& a, float* scratch, int64_t first, int64_t end) {
  int64_t step = a.wide_x ? kPanelOutputs : kLinearBlock, last = smaller(end * kLinearBlock, a.out_features);
  for (int64_t column = first * kLinearBlock; column < last; column += step) {
    int64_t count = smaller(step, last - column);
    a.is_float_out ? multiply_columns<float>(a, scratch, column, count) : multiply_columns<Bf16>(a, scratch, column, count);
  }
}

}  // namespace lorayard::LORAYARD_LEVEL
