// Vectors of one instruction set: every kernel is compiled once per level against this one vocabulary.
//
// No standard library templates here or in the kernels: the linker would merge an AVX-512 copy of one into the
// AVX2 code. Operand order in min and max matters: the second operand survives when either is NaN.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace {

using lorayard::Bf16;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

#ifdef LORAYARD_AVX512

constexpr int kLanes = 16;
using Vec = __m512;

inline __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }
inline Vec set(float x) { return _mm512_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec root(Vec a) { return _mm512_sqrt_ps(a); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec lowest(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec highest(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const Bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Vec load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline Vec load(const Bf16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }
inline void store(float* p, Vec v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
inline void store(Bf16* p, Vec v, int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
inline Vec round_to_int(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power_of_two(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
inline float sum(Vec v) { return _mm512_reduce_add_ps(v); }

// Lane i of the result is the sum of the lanes of v[i]: a transposition with additions on the way.
inline Vec sums(const Vec (&v)[16]) {
  Vec quads[4];
  for (int i = 0; i < 4; i++) {
    const Vec* q = v + 4 * i;
    Vec a = add(_mm512_unpacklo_ps(q[0], q[1]), _mm512_unpackhi_ps(q[0], q[1]));
    Vec b = add(_mm512_unpacklo_ps(q[2], q[3]), _mm512_unpackhi_ps(q[2], q[3]));
    __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    quads[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
  }
  auto halves = [](Vec a, Vec b) {
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return halves(halves(quads[0], quads[1]), halves(quads[2], quads[3]));
}

#else

constexpr int kLanes = 8;
using Vec = __m256;

inline __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(smaller(n, 8))), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec set(float x) { return _mm256_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec root(Vec a) { return _mm256_sqrt_ps(a); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec lowest(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec highest(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const Bf16* p) {
  __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec load(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
inline Vec load(const Bf16* p, int64_t n) {
  if (n >= 8) return load(p);
  Bf16 some[8] = {};
  __builtin_memcpy(some, p, static_cast<size_t>(n) * sizeof(Bf16));
  return load(some);
}
inline void store(float* p, Vec v, int64_t n) {
  if (n >= 8) {
    _mm256_storeu_ps(p, v);
  } else {
    _mm256_maskstore_ps(p, first(n), v);  // 42 operations on Zen 3
  }
}
inline void store(Bf16* p, Vec v, int64_t n) {
  __m256i bits = _mm256_castps_si256(v);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i even_rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  // Rounding could carry a NaN's bits over into infinity or zero.
  __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(even_rounded, _mm256_set1_epi32(0x7fc00000), is_nan), 16);
  __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  if (n >= 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
  } else {
    __builtin_memcpy(p, &words, static_cast<size_t>(n) * sizeof(Bf16));
  }
}
inline Vec round_to_int(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power_of_two(Vec x, Vec n) {
  // In two halves, so that 2^-126 and below, and 2^128, do not leave the exponent's range on the way.
  __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  auto power = [](__m256i e) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23)); };
  return mul(mul(x, power(half)), power(_mm256_sub_epi32(whole, half)));
}
inline Vec sums(const Vec (&v)[8]) {
  Vec quads[2];
  for (int i = 0; i < 2; i++) {
    const Vec* q = v + 4 * i;
    quads[i] = _mm256_hadd_ps(_mm256_hadd_ps(q[0], q[1]), _mm256_hadd_ps(q[2], q[3]));
  }
  return add(_mm256_permute2f128_ps(quads[0], quads[1], 0x20), _mm256_permute2f128_ps(quads[0], quads[1], 0x31));
}
inline float sum(Vec v) {
  float lanes[8];
  _mm256_storeu_ps(lanes, v);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

#endif

// e^x to about one unit in the last place: x = n ln 2 + r, and e^r by a polynomial (the Cephes coefficients).
inline Vec exponential(Vec x) {
  x = lowest(set(88.7f), highest(set(-104.0f), x));
  Vec n = round_to_int(mul(x, set(1.44269504f)));
  Vec r = fma(n, set(2.12194440e-4f), fma(n, set(-0.693359375f), x));
  Vec p = set(1.9875691500e-4f);
  p = fma(p, r, set(1.3981999507e-3f));
  p = fma(p, r, set(8.3334519073e-3f));
  p = fma(p, r, set(4.1665795894e-2f));
  p = fma(p, r, set(1.6666665459e-1f));
  p = fma(p, r, set(5.0000001201e-1f));
  p = add(fma(mul(p, r), r, r), set(1.0f));
  return times_power_of_two(p, n);
}

}  // namespace
