// out = gelu(gate) up with gelu's tanh form, in float32, rounded once: gelu(x) = x / (1 + e^-2u) for
// u = sqrt(2 / pi) (x + 0.044715 x^3).
#include "simd.h"

namespace lorayard::LORAYARD_LEVEL {
namespace {

constexpr float kTwiceRootOfTwoOverPi = 1.5957691216f;

template <class T>
void gate_rows(const GateArgs& a, int64_t first, int64_t end) {
  for (int64_t row = first; row < end; row++) {
    const T* gate = static_cast<const T*>(a.gate_up) + 2 * row * a.width;
    const T* up = gate + a.width;
    T* out = static_cast<T*>(a.out) + row * a.width;
    for (int64_t c = 0; c < a.width; c += kLanes) {
      int64_t n = smaller(kLanes, a.width - c);
      Vec g = load(gate + c, n);
      Vec inner = mul(g, fma(mul(g, g), set(0.044715f), set(1.0f)));
      Vec gelu = div(g, add(set(1.0f), exponential(mul(set(-kTwiceRootOfTwoOverPi), inner))));
      store(out + c, mul(gelu, load(up + c, n)), n);
    }
  }
}

}  // namespace

void geglu(const GateArgs& a, int64_t first, int64_t end) {
  a.is_bf16 ? gate_rows<Bf16>(a, first, end) : gate_rows<float>(a, first, end);
}

}  // namespace lorayard::LORAYARD_LEVEL
