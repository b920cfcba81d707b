// out = gate / (1 + e^(-alpha gate)) (up + 1) for gate at most limit and up within it, in float32, rounded once.
#include "simd.h"

namespace lorayard::LORAYARD_LEVEL {
namespace {

template <class T>
void gate_rows(const ClampedGateArgs& a, int64_t first, int64_t end) {
  for (int64_t row = first; row < end; row++) {
    const T* pairs = static_cast<const T*>(a.gate_up) + 2 * row * a.width;
    T* out = static_cast<T*>(a.out) + row * a.width;
    for (int64_t c = 0; c < a.width; c += kLanes) {
      int64_t n = smaller(kLanes, a.width - c);
      float gates[kLanes] = {}, ups[kLanes] = {};
      for (int64_t i = 0; i < n; i++) {
        gates[i] = to_float(pairs[2 * (c + i)]);
        ups[i] = to_float(pairs[2 * (c + i) + 1]);
      }
      // The second operand survives where either is NaN.
      Vec gate = lowest(set(a.limit), load(gates));
      Vec up = highest(set(-a.limit), lowest(set(a.limit), load(ups)));
      Vec glu = div(gate, add(set(1.0f), exponential(mul(set(-a.alpha), gate))));
      store(out + c, mul(add(up, set(1.0f)), glu), n);
    }
  }
}

}  // namespace

void clamped_swiglu(const ClampedGateArgs& a, int64_t first, int64_t end) {
  a.is_bf16 ? gate_rows<Bf16>(a, first, end) : gate_rows<float>(a, first, end);
}

}  // namespace lorayard::LORAYARD_LEVEL
