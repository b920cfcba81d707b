// residual += delta; out = residual / sqrt(mean(residual^2) + eps) weight, a row at a time in float32.
#include "simd.h"

namespace lorayard::LORAYARD_LEVEL {
namespace {

template <class T>
float add_and_square(T* residual, const T* delta, int64_t width) {
  Vec squares = set(0.0f);
  for (int64_t c = 0; c < width; c += kLanes) {
    int64_t n = smaller(kLanes, width - c);
    Vec x = load(residual + c, n);
    if (delta) {
      store(residual + c, add(x, load(delta + c, n)), n);
      x = load(residual + c, n);  // as rounded: what the next layer sees is what is normed
    }
    squares = fma(x, x, squares);
  }
  return sum(squares);
}

template <class T>
void norm_rows(const NormArgs& a, int64_t first, int64_t end) {
  for (int64_t row = first; row < end; row++) {
    T* residual = static_cast<T*>(a.residual) + row * a.width;
    const T* delta = a.delta ? static_cast<const T*>(a.delta) + row * a.width : nullptr;
    T* out = static_cast<T*>(a.out) + row * a.width;
    float mean = add_and_square(residual, delta, a.width) / static_cast<float>(a.width);
    Vec factor = set(1.0f / __builtin_sqrtf(mean + a.eps));
    for (int64_t c = 0; c < a.width; c += kLanes) {
      int64_t n = smaller(kLanes, a.width - c);
      store(out + c, mul(mul(load(residual + c, n), factor), load(a.weight + c, n)), n);
    }
  }
}

}  // namespace

void add_rms_norm(const NormArgs& a, int64_t first, int64_t end) {
  a.is_bf16 ? norm_rows<Bf16>(a, first, end) : norm_rows<float>(a, first, end);
}

}  // namespace lorayard::LORAYARD_LEVEL
