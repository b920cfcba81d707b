// Each intrinsic of `avx512/immintrin.h` by itself, for `tests/unit/test_emulated_avx512.py`: in and out are vectors
// of 64 bytes, one after another. Compiled with the processor's own flags instead it asks the hardware.
#include <immintrin.h>

#include <cstdint>

namespace {

template <class V>
V at(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
void put(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}
template <class V>
V argument(const void* in, int i) {
  return at<V>(static_cast<const char*>(in) + 64 * i);
}

}  // namespace

#define OP(name, ...) \
  extern "C" void name(const void* in, void* out) { put(out, __VA_ARGS__); }
#define A(i) argument<__m512>(in, i)
#define I(i) argument<__m512i>(in, i)
#define D(i) argument<__m512d>(in, i)

OP(add_ps, _mm512_add_ps(A(0), A(1)))
OP(sub_ps, _mm512_sub_ps(A(0), A(1)))
OP(mul_ps, _mm512_mul_ps(A(0), A(1)))
OP(div_ps, _mm512_div_ps(A(0), A(1)))
OP(sqrt_ps, _mm512_sqrt_ps(A(0)))
OP(fmadd_ps, _mm512_fmadd_ps(A(0), A(1), A(2)))
OP(min_ps, _mm512_min_ps(A(0), A(1)))
OP(max_ps, _mm512_max_ps(A(0), A(1)))
OP(roundscale_ps, _mm512_roundscale_ps(A(0), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
OP(scalef_ps, _mm512_scalef_ps(A(0), A(1)))
OP(reduce_add_ps, _mm512_reduce_add_ps(A(0)))
OP(dpbf16_ps, _mm512_dpbf16_ps(A(0), argument<__m512bh>(in, 1), argument<__m512bh>(in, 2)))
OP(cvtneps_pbh, _mm512_cvtneps_pbh(A(0)))
OP(set1_ps, _mm512_set1_ps(at<float>(in)))
OP(set1_epi32, _mm512_set1_epi32(at<int>(in)))
OP(setr_epi32, _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, -15))
OP(and_si512, _mm512_and_si512(I(0), I(1)))
OP(slli_epi32, _mm512_slli_epi32(I(0), 16))
OP(srli_epi32, _mm512_srli_epi32(I(0), 4))
OP(cvtepi32_ps, _mm512_cvtepi32_ps(I(0)))
OP(cvtepu8_epi32, _mm512_cvtepu8_epi32(at<__m128i>(in)))
OP(cvtepu16_epi32, _mm512_cvtepu16_epi32(at<__m256i>(in)))
OP(unpacklo_epi16, _mm512_unpacklo_epi16(I(0), I(1)))
OP(unpackhi_epi16, _mm512_unpackhi_epi16(I(0), I(1)))
OP(unpacklo_ps, _mm512_unpacklo_ps(A(0), A(1)))
OP(unpackhi_ps, _mm512_unpackhi_ps(A(0), A(1)))
OP(unpacklo_pd, _mm512_unpacklo_pd(D(0), D(1)))
OP(unpackhi_pd, _mm512_unpackhi_pd(D(0), D(1)))
OP(shuffle_f32x4_88, _mm512_shuffle_f32x4(A(0), A(1), 0x88))
OP(shuffle_f32x4_dd, _mm512_shuffle_f32x4(A(0), A(1), 0xdd))
OP(permutexvar_ps, _mm512_permutexvar_ps(I(0), A(1)))
OP(permutex2var_ps, _mm512_permutex2var_ps(A(0), I(1), A(2)))
OP(casts, _mm512_castsi512_ps(reinterpret_cast<__m512i>(_mm512_castpd_ps(_mm512_castps_pd(A(0))))))

// Loads and stores under a mask, which the first two do not have.
extern "C" void loadu_ps(const void* p, unsigned, void* out) { put(out, _mm512_loadu_ps(p)); }
extern "C" void loadu_si512(const void* p, unsigned, void* out) { put(out, _mm512_loadu_si512(p)); }
extern "C" void maskz_loadu_ps(const void* p, unsigned mask, void* out) { put(out, _mm512_maskz_loadu_ps(mask, p)); }
extern "C" void maskz_loadu_epi16(const void* p, unsigned mask, void* out) { put(out, _mm512_maskz_loadu_epi16(mask, p)); }
extern "C" void maskz_loadu_epi16_256(const void* p, unsigned mask, void* out) { put(out, _mm256_maskz_loadu_epi16(mask, p)); }
extern "C" void mask_storeu_ps(void* p, unsigned mask, const void* in) { _mm512_mask_storeu_ps(p, mask, A(0)); }
extern "C" void mask_storeu_epi16_256(void* p, unsigned mask, const void* in) {
  _mm256_mask_storeu_epi16(p, mask, at<__m256i>(in));
}
