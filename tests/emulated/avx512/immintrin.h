// AVX512-BF16 without a processor that has it: the intrinsics that kernels/cpu uses, as loops over lanes.
//
// For tests alone. It comes first on the include path, brings in the compiler's header and puts macros over the names
// that the kernels use. What is missing here does not compile, for the compiler's own needs -mavx512f. Semantics are
// those of Intel's Intrinsics Guide and of the Software Developer's Manual, volume 2; a masked lane touches no memory.
#pragma once

#include_next <immintrin.h>

#include <cstdint>
#include <cstring>

namespace emulated_avx512 {

template <class T>
struct Lanes {
  static constexpr int kCount = 64 / sizeof(T);
  T at[kCount];
};
using Floats = Lanes<float>;
using Doubles = Lanes<double>;
using Words = Lanes<uint16_t>;
using Ints = Lanes<uint32_t>;

template <class To, class From>
inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// The vector whose lane i is lane(i).
template <class Vector, class T, class Lane>
inline Vector make(Lane lane) {
  Lanes<T> made;
  for (int i = 0; i < Lanes<T>::kCount; i++) made.at[i] = lane(i);
  return bits_as<Vector>(made);
}
template <class Lane>
inline __m512 make_floats(Lane lane) {
  return make<__m512, float>(lane);
}
template <class Lane>
inline __m512i make_ints(Lane lane) {
  return make<__m512i, uint32_t>(lane);
}

inline __m512 set1_ps(float x) {
  return make_floats([&](int) { return x; });
}
inline __m512i set1_epi32(int x) {
  return make_ints([&](int) { return x; });
}
template <class... Int>
inline __m512i setr_epi32(Int... x) {
  static_assert(sizeof...(x) == 16);
  return bits_as<__m512i>(Ints{static_cast<uint32_t>(x)...});
}

// Memory. A mask of all lanes is one copy, so that AddressSanitizer sees one access.
template <class T, int kCount, class Mask>
inline void read(T* to, Mask mask, const void* from) {
  if (mask == static_cast<Mask>((uint64_t{1} << kCount) - 1)) {
    std::memcpy(to, from, kCount * sizeof(T));
    return;
  }
  for (int i = 0; i < kCount; i++) {
    to[i] = 0;
    if (mask >> i & 1) std::memcpy(to + i, static_cast<const T*>(from) + i, sizeof(T));
  }
}
template <class T, int kCount, class Mask>
inline void write(void* to, Mask mask, const T* from) {
  if (mask == static_cast<Mask>((uint64_t{1} << kCount) - 1)) {
    std::memcpy(to, from, kCount * sizeof(T));
    return;
  }
  for (int i = 0; i < kCount; i++)
    if (mask >> i & 1) std::memcpy(static_cast<T*>(to) + i, from + i, sizeof(T));
}

inline __m512 loadu_ps(const void* p) {
  __m512 all;
  std::memcpy(&all, p, sizeof(all));
  return all;
}
inline __m512i loadu_si512(const void* p) {
  __m512i all;
  std::memcpy(&all, p, sizeof(all));
  return all;
}
inline __m512 maskz_loadu_ps(__mmask16 mask, const void* p) {
  Floats some;
  read<float, 16>(some.at, mask, p);
  return bits_as<__m512>(some);
}
inline __m512i maskz_loadu_epi16(__mmask32 mask, const void* p) {
  Words some;
  read<uint16_t, 32>(some.at, mask, p);
  return bits_as<__m512i>(some);
}
inline __m256i maskz_loadu_epi16_256(__mmask16 mask, const void* p) {
  uint16_t some[16];
  read<uint16_t, 16>(some, mask, p);
  return bits_as<__m256i>(some);
}
inline void mask_storeu_ps(void* p, __mmask16 mask, __m512 v) { write<float, 16>(p, mask, bits_as<Floats>(v).at); }
inline void mask_storeu_epi16_256(void* p, __mmask16 mask, __m256i v) {
  uint16_t words[16];
  std::memcpy(words, &v, sizeof(words));
  write<uint16_t, 16>(p, mask, words);
}

// Arithmetic, rounded to nearest even as MXCSR has it from the start.
inline __m512 add_ps(__m512 a, __m512 b) { return a + b; }
inline __m512 sub_ps(__m512 a, __m512 b) { return a - b; }
inline __m512 mul_ps(__m512 a, __m512 b) { return a * b; }
inline __m512 div_ps(__m512 a, __m512 b) { return a / b; }
inline __m512 sqrt_ps(__m512 a) {
  Floats x = bits_as<Floats>(a);
  return make_floats([&](int i) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x.at[i]))); });
}
inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  Floats x = bits_as<Floats>(a), y = bits_as<Floats>(b), z = bits_as<Floats>(c);
  return make_floats([&](int i) { return __builtin_fmaf(x.at[i], y.at[i], z.at[i]); });
}
// The second operand survives where either is NaN, and where both are zeros.
inline __m512 min_ps(__m512 a, __m512 b) {
  Floats x = bits_as<Floats>(a), y = bits_as<Floats>(b);
  return make_floats([&](int i) { return x.at[i] < y.at[i] ? x.at[i] : y.at[i]; });
}
inline __m512 max_ps(__m512 a, __m512 b) {
  Floats x = bits_as<Floats>(a), y = bits_as<Floats>(b);
  return make_floats([&](int i) { return x.at[i] > y.at[i] ? x.at[i] : y.at[i]; });
}
template <int kControl>
inline __m512 roundscale_ps(__m512 a) {
  static_assert(kControl == (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), "only to a whole number, the nearest");
  Floats x = bits_as<Floats>(a);
  return make_floats([&](int i) {
    __m128 one = _mm_set_ss(x.at[i]);
    return _mm_cvtss_f32(_mm_round_ss(one, one, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  });
}
// a 2^floor(b), rounded once: in double no product is rounded before it becomes a float. Infinite b is left out.
inline float scalef(float a, float b) {
  if (a != a || b != b) return a + b;
  float bounded = b > 400.0f ? 400.0f : b < -400.0f ? -400.0f : b;
  int64_t exponent = static_cast<int64_t>(__builtin_floorf(bounded));
  return static_cast<float>(static_cast<double>(a) * bits_as<double>((exponent + 1023) << 52));
}
inline __m512 scalef_ps(__m512 a, __m512 b) {
  Floats x = bits_as<Floats>(a), y = bits_as<Floats>(b);
  return make_floats([&](int i) { return scalef(x.at[i], y.at[i]); });
}
// The compiler's sequence, for there is no such instruction: halves upon each other, down to one lane.
inline float reduce_add_ps(__m512 v) {
  Floats x = bits_as<Floats>(v);
  for (int half = 8; half >= 1; half /= 2)
    for (int i = 0; i < half; i++) x.at[i] += x.at[i + half];
  return x.at[0];
}

// bfloat16.
inline float flushed(float x) {
  uint32_t bits = bits_as<uint32_t>(x);
  return bits_as<float>((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
}
inline float flushed_from(uint32_t high_bits) { return flushed(bits_as<float>(high_bits)); }
// Two multiply-adds, the pair's second element first. Denormals are zero on the way in and out whatever MXCSR says,
// and each step is rounded to nearest even. A result that only rounding lifts to 2^-126 is kept; hardware may flush it.
inline __m512 dpbf16_ps(__m512 acc, __m512bh a, __m512bh b) {
  Floats sum = bits_as<Floats>(acc);
  Ints x = bits_as<Ints>(a), y = bits_as<Ints>(b);
  return make_floats([&](int i) {
    float odd = __builtin_fmaf(
        flushed_from(x.at[i] & 0xffff0000u), flushed_from(y.at[i] & 0xffff0000u), flushed(sum.at[i]));
    return flushed(__builtin_fmaf(flushed_from(x.at[i] << 16), flushed_from(y.at[i] << 16), flushed(odd)));
  });
}
// To nearest even; denormals become zeros of their sign, a NaN is quieted and keeps the upper bits of its payload.
inline __m256bh cvtneps_pbh(__m512 v) {
  Ints x = bits_as<Ints>(v);
  uint16_t words[16];
  for (int i = 0; i < 16; i++) {
    uint32_t bits = x.at[i], exponent = bits & 0x7f800000u;
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1);
    uint32_t result = exponent == 0 ? bits & 0x80000000u : is_nan ? bits | 0x00400000u : rounded;
    words[i] = static_cast<uint16_t>(result >> 16);
  }
  return bits_as<__m256bh>(words);
}

// Whole numbers.
inline __m512i and_si512(__m512i a, __m512i b) { return a & b; }
inline __m512i slli_epi32(__m512i a, unsigned count) {
  Ints x = bits_as<Ints>(a);
  return make_ints([&](int i) { return count > 31 ? 0 : x.at[i] << count; });
}
inline __m512i srli_epi32(__m512i a, unsigned count) {
  Ints x = bits_as<Ints>(a);
  return make_ints([&](int i) { return count > 31 ? 0 : x.at[i] >> count; });
}
inline __m512 cvtepi32_ps(__m512i a) {
  Ints x = bits_as<Ints>(a);
  return make_floats([&](int i) { return static_cast<float>(static_cast<int32_t>(x.at[i])); });
}
inline __m512i cvtepu8_epi32(__m128i a) {
  uint8_t x[16];
  std::memcpy(x, &a, sizeof(x));
  return make_ints([&](int i) { return x[i]; });
}
inline __m512i cvtepu16_epi32(__m256i a) {
  uint16_t x[16];
  std::memcpy(x, &a, sizeof(x));
  return make_ints([&](int i) { return x[i]; });
}

// Lanes in other places. Unpacking interleaves the lower or upper halves of each 128 bits of a and b.
template <class T, bool kHigh, class Vector>
inline Vector unpack(Vector a, Vector b) {
  constexpr int kPart = 16 / sizeof(T);
  Lanes<T> x = bits_as<Lanes<T>>(a), y = bits_as<Lanes<T>>(b);
  return make<Vector, T>([&](int i) {
    int from = i / kPart * kPart + i % kPart / 2 + (kHigh ? kPart / 2 : 0);
    return i % 2 == 0 ? x.at[from] : y.at[from];
  });
}
// Two quarters of a, then two of b.
template <int kControl>
inline __m512 shuffle_f32x4(__m512 a, __m512 b) {
  Floats x = bits_as<Floats>(a), y = bits_as<Floats>(b);
  return make_floats([&](int i) {
    int from = (kControl >> i / 4 * 2 & 3) * 4 + i % 4;
    return i < 8 ? x.at[from] : y.at[from];
  });
}
inline __m512 permutexvar_ps(__m512i index, __m512 a) {
  Ints from = bits_as<Ints>(index);
  Floats x = bits_as<Floats>(a);
  return make_floats([&](int i) { return x.at[from.at[i] & 15]; });
}
inline __m512 permutex2var_ps(__m512 a, __m512i index, __m512 b) {
  Ints from = bits_as<Ints>(index);
  Floats x = bits_as<Floats>(a), y = bits_as<Floats>(b);
  return make_floats([&](int i) { return (from.at[i] & 16 ? y : x).at[from.at[i] & 15]; });
}

}  // namespace emulated_avx512

// Some of these are the compiler's macros where it does not optimise.
#undef _mm512_roundscale_ps
#undef _mm512_shuffle_f32x4
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32
#define _mm256_mask_storeu_epi16 ::emulated_avx512::mask_storeu_epi16_256
#define _mm256_maskz_loadu_epi16 ::emulated_avx512::maskz_loadu_epi16_256
#define _mm512_add_ps ::emulated_avx512::add_ps
#define _mm512_and_si512 ::emulated_avx512::and_si512
#define _mm512_castpd_ps(x) reinterpret_cast<__m512>(x)
#define _mm512_castps_pd(x) reinterpret_cast<__m512d>(x)
#define _mm512_castsi512_ps(x) reinterpret_cast<__m512>(x)
#define _mm512_cvtepi32_ps ::emulated_avx512::cvtepi32_ps
#define _mm512_cvtepu16_epi32 ::emulated_avx512::cvtepu16_epi32
#define _mm512_cvtepu8_epi32 ::emulated_avx512::cvtepu8_epi32
#define _mm512_cvtneps_pbh ::emulated_avx512::cvtneps_pbh
#define _mm512_div_ps ::emulated_avx512::div_ps
#define _mm512_dpbf16_ps ::emulated_avx512::dpbf16_ps
#define _mm512_fmadd_ps ::emulated_avx512::fmadd_ps
#define _mm512_loadu_ps ::emulated_avx512::loadu_ps
#define _mm512_loadu_si512 ::emulated_avx512::loadu_si512
#define _mm512_mask_storeu_ps ::emulated_avx512::mask_storeu_ps
#define _mm512_maskz_loadu_epi16 ::emulated_avx512::maskz_loadu_epi16
#define _mm512_maskz_loadu_ps ::emulated_avx512::maskz_loadu_ps
#define _mm512_max_ps ::emulated_avx512::max_ps
#define _mm512_min_ps ::emulated_avx512::min_ps
#define _mm512_mul_ps ::emulated_avx512::mul_ps
#define _mm512_permutex2var_ps ::emulated_avx512::permutex2var_ps
#define _mm512_permutexvar_ps ::emulated_avx512::permutexvar_ps
#define _mm512_reduce_add_ps ::emulated_avx512::reduce_add_ps
#define _mm512_roundscale_ps(x, control) ::emulated_avx512::roundscale_ps<control>(x)
#define _mm512_scalef_ps ::emulated_avx512::scalef_ps
#define _mm512_set1_epi32 ::emulated_avx512::set1_epi32
#define _mm512_set1_ps ::emulated_avx512::set1_ps
#define _mm512_setr_epi32 ::emulated_avx512::setr_epi32
#define _mm512_shuffle_f32x4(a, b, control) ::emulated_avx512::shuffle_f32x4<control>(a, b)
#define _mm512_slli_epi32 ::emulated_avx512::slli_epi32
#define _mm512_sqrt_ps ::emulated_avx512::sqrt_ps
#define _mm512_srli_epi32 ::emulated_avx512::srli_epi32
#define _mm512_sub_ps ::emulated_avx512::sub_ps
#define _mm512_unpackhi_epi16 ::emulated_avx512::unpack<uint16_t, true>
#define _mm512_unpackhi_pd ::emulated_avx512::unpack<double, true>
#define _mm512_unpackhi_ps ::emulated_avx512::unpack<float, true>
#define _mm512_unpacklo_epi16 ::emulated_avx512::unpack<uint16_t, false>
#define _mm512_unpacklo_pd ::emulated_avx512::unpack<double, false>
#define _mm512_unpacklo_ps ::emulated_avx512::unpack<float, false>
