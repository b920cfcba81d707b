// out = gate / (1 + e^-gate) up, in float32, rounded once.
#include "simd.h"

namespace lorayard::LORAYARD_LEVEL {
namespace {

template <class T>
void gate_rows(const GateArgs& a, int64_t first, int64_t end) {
  for (int64_t row = first; row < end; row++) {
    const T* gate = static_cast<const T*>(a.gate_up) + 2 * row * a.width;
    const T* up = gate + a.width;
    T* out = static_cast<T*>(a.out) + row * a.width;
    for (int64_t c = 0; c < a.width; c += kLanes) {
      int64_t n = smaller(kLanes, a.width - c);
      Vec g = load(gate + c, n);
      Vec silu = div(g, add(set(1.0f), exponential(sub(set(0.0f), g))));
      store(out + c, mul(silu, load(up + c, n)), n);
    }
  }
}

}  // namespace

void swiglu(const GateArgs& a, int64_t first, int64_t end) {
  a.is_bf16 ? gate_rows<Bf16>(a, first, end) : gate_rows<float>(a, first, end);
}

}  // namespace lorayard::LORAYARD_LEVEL
