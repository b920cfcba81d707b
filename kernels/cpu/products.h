// Two small matrix products for up to four rows at once; a row's sums never depend on the rows beside it.
#pragma once

#include "simd.h"

namespace {

// A run of consecutive elements as the multiply-add of this level takes them.
template <class T>
struct Run {
  static constexpr int kWidth = kLanes;
  using Type = Vec;
  static Type get(const T* p) { return load(p); }
  static Type get(const T* p, int64_t n) { return load(p, n); }
  static Vec dot(Vec acc, Type a, Type b) { return fma(a, b, acc); }
};

#ifdef LORAYARD_AVX512
template <>
struct Run<Bf16> {
  static constexpr int kWidth = 32;
  using Type = __m512bh;
  static Type get(const Bf16* p) { return reinterpret_cast<Type>(_mm512_loadu_si512(p)); }
  static Type get(const Bf16* p, int64_t n) {
    __mmask32 mask = n >= 32 ? 0xffffffffu : (1u << n) - 1;
    return reinterpret_cast<Type>(_mm512_maskz_loadu_epi16(mask, p));
  }
  static Vec dot(Vec acc, Type a, Type b) { return _mm512_dpbf16_ps(acc, a, b); }
};
#endif

template <int M>
constexpr int kRowsAtOnce = M == 1 ? kLanes : M == 2 ? kLanes / 2 : kLanes / 4;

// out[m][r] = sum over i of x[m][i] matrix[r][i], for R consecutive r; the first `valid` are stored.
template <class T, int M, bool kAll>
inline void dot_block(const T* const* x, const T* matrix, int64_t ld, int64_t width, int64_t valid, float* const* out) {
  constexpr int R = kRowsAtOnce<M>;
  using Elements = Run<T>;
  const T* rows[R];
  for (int r = 0; r < R; r++) rows[r] = matrix + (kAll || r < valid ? r : valid - 1) * ld;
  Vec acc[kLanes];
  for (int i = 0; i < kLanes; i++) acc[i] = set(0.0f);
  int64_t i = 0;
  for (; i + Elements::kWidth <= width; i += Elements::kWidth) {
    typename Elements::Type xs[M];
    for (int m = 0; m < M; m++) xs[m] = Elements::get(x[m] + i);
    for (int r = 0; r < R; r++) {
      auto w = Elements::get(rows[r] + i);
      for (int m = 0; m < M; m++) acc[m * R + r] = Elements::dot(acc[m * R + r], xs[m], w);
    }
  }
  if (int64_t rest = width - i) {
    typename Elements::Type xs[M];
    for (int m = 0; m < M; m++) xs[m] = Elements::get(x[m] + i, rest);
    for (int r = 0; r < R; r++) {
      auto w = Elements::get(rows[r] + i, rest);
      for (int m = 0; m < M; m++) acc[m * R + r] = Elements::dot(acc[m * R + r], xs[m], w);
    }
  }
  float results[kLanes];
  store(results, sums(acc), kLanes);
  int64_t count = kAll ? R : valid;
  for (int m = 0; m < M; m++) __builtin_memcpy(out[m], results + m * R, static_cast<size_t>(count) * sizeof(float));
}

// out[m][r] = sum over i of x[m][i] matrix[r][i], for all r below num_rows.
template <class T, int M>
inline void dot_rows(const T* const* x, const T* matrix, int64_t ld, int64_t width, int64_t num_rows, float* const* out) {
  constexpr int R = kRowsAtOnce<M>;
  float* to[M];
  int64_t r = 0;
  for (; r + R <= num_rows; r += R) {
    for (int m = 0; m < M; m++) to[m] = out[m] + r;
    dot_block<T, M, true>(x, matrix + r * ld, ld, width, R, to);
  }
  if (r < num_rows) {
    for (int m = 0; m < M; m++) to[m] = out[m] + r;
    dot_block<T, M, false>(x, matrix + r * ld, ld, width, num_rows - r, to);
  }
}

#ifndef LORAYARD_AVX512
// The same sums, bit for bit, from rows and a matrix that were widened beforehand: without a multiply-add for pairs of
// bfloat16, widening a number takes as long as multiplying it, so it must not be done once for every four rows.
constexpr int kPanel = lorayard::kPanelOutputs;  // sums at once: they and their factors fill the registers

// Compilers would rather load a factor again for each multiply-add, and loads would bound the product.
inline void keep_in_register(Vec& v) { asm("" : "+x"(v)); }

template <int M>
inline void multiply_tile(const float* const* x, const float* const* panel, int64_t width, float* out) {
  constexpr int R = kPanel / M;
  Vec acc[kPanel];
  for (int i = 0; i < kPanel; i++) acc[i] = set(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    Vec ws[R];
    for (int r = 0; r < R; r++) ws[r] = load(panel[r] + i);
    for (int m = 0; m < M; m++) {
      Vec xs = load(x[m] + i);
      keep_in_register(xs);
      for (int r = 0; r < R; r++) acc[m * R + r] = fma(xs, ws[r], acc[m * R + r]);
    }
  }
  if (int64_t rest = width - i)
    for (int r = 0; r < R; r++) {
      Vec w = load(panel[r] + i, rest);
      for (int m = 0; m < M; m++) acc[m * R + r] = fma(load(x[m] + i, rest), w, acc[m * R + r]);
    }
  for (int s = 0; s < kPanel; s += 4) {
    Vec quads = _mm256_hadd_ps(_mm256_hadd_ps(acc[s], acc[s + 1]), _mm256_hadd_ps(acc[s + 2], acc[s + 3]));
    _mm_storeu_ps(out + s, _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1)));
  }
}

// out[m][r] = sum over i of x[m][i] panel[r][i], for r below num_rows; rounded up, kPanel / M at a time are written.
template <int M>
inline void multiply_panel(const float* const* x, const float* panel, int64_t width, int64_t num_rows, float* const* out) {
  constexpr int R = kPanel / M;
  float tile[kPanel];
  for (int64_t first = 0; first < num_rows; first += R) {
    const float* rows[R];
    for (int r = 0; r < R; r++) rows[r] = panel + smaller(first + r, num_rows - 1) * width;
    multiply_tile<M>(x, rows, width, tile);
    for (int m = 0; m < M; m++) __builtin_memcpy(out[m] + first, tile + m * R, R * sizeof(float));
  }
}

inline void widen_all(const Bf16* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i), kLanes);
  for (; i < count; i++) to[i] = to_float(from[i]);
}
#endif

// Adds factors[m][k] rows[k][column...] over k to acc[m], 2 kLanes columns each, `count` of them real.
template <class T>
struct Mixer {
  template <int M, int P, bool kAll>
  static void add_rows(Vec (&acc)[M][2 * P], const T* const* factors, const T* rows, int64_t ld, int64_t num_rows, int64_t count) {
    for (int64_t k = 0; k < num_rows; k++) {
      const T* row = rows + k * ld;
      for (int v = 0; v < 2 * P; v++) {
        int64_t left = count - v * kLanes;
        Vec w = kAll ? load(row + v * kLanes) : left > 0 ? load(row + v * kLanes, left) : set(0.0f);
        for (int m = 0; m < M; m++) acc[m][v] = fma(set(to_float(factors[m][k])), w, acc[m][v]);
      }
    }
  }
  static void in_order(Vec&, Vec&) {}
};

#ifdef LORAYARD_AVX512
// Two rows are interleaved in registers for the pairwise dot product. That leaves columns 0-3, 8-11, 16-19, 24-27
// in one accumulator and the others in its neighbour; `in_order` puts them right.
template <>
struct Mixer<Bf16> {
  template <int M, int P, bool kAll>
  static void add_rows(Vec (&acc)[M][2 * P], const Bf16* const* factors, const Bf16* rows, int64_t ld, int64_t num_rows, int64_t count) {
    int64_t k = 0;
    for (; k + 2 <= num_rows; k += 2) {
      int pair[M];
      for (int m = 0; m < M; m++) __builtin_memcpy(&pair[m], factors[m] + k, 4);
      add_pair<M, P, kAll>(acc, pair, rows + k * ld, rows + (k + 1) * ld, 0xffffffffu, count);
    }
    if (k == num_rows) return;
    int pair[M];
    for (int m = 0; m < M; m++) pair[m] = factors[m][k].bits;
    add_pair<M, P, kAll>(acc, pair, rows + k * ld, rows + k * ld, 0, count);
  }
  template <int M, int P, bool kAll>
  static void add_pair(Vec (&acc)[M][2 * P], const int (&pair)[M], const Bf16* even, const Bf16* odd, __mmask32 has_odd, int64_t count) {
    __m512bh factors[M];
    for (int m = 0; m < M; m++) factors[m] = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair[m]));
    for (int p = 0; p < P; p++) {
      __mmask32 mask = kAll ? 0xffffffffu : some(count - 32 * p);
      if (kAll) {
        // The next columns of a row lie in the next lines, of each row in turn: no prefetcher follows that.
        _mm_prefetch(reinterpret_cast<const char*>(even + 32 * (p + P)), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(odd + 32 * (p + P)), _MM_HINT_T0);
      }
      __m512i a = _mm512_maskz_loadu_epi16(mask, even + 32 * p);
      __m512i b = _mm512_maskz_loadu_epi16(mask & has_odd, odd + 32 * p);
      auto low = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(a, b));
      auto high = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(a, b));
      for (int m = 0; m < M; m++) {
        acc[m][2 * p] = _mm512_dpbf16_ps(acc[m][2 * p], factors[m], low);
        acc[m][2 * p + 1] = _mm512_dpbf16_ps(acc[m][2 * p + 1], factors[m], high);
      }
    }
  }
  static void in_order(Vec& low, Vec& high) {
    Vec a = _mm512_permutex2var_ps(low, _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23), high);
    high = _mm512_permutex2var_ps(low, _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31), high);
    low = a;
  }
  static __mmask32 some(int64_t n) { return n >= 32 ? 0xffffffffu : n <= 0 ? 0 : (1u << n) - 1; }
};
#endif

// Rows that lie in blocks of `block_rows`, as a paged cache keeps them; a plain matrix is one block.
template <class T>
struct BlockedRows {
  const T* const* blocks;
  int64_t block_rows, ld, num_rows;
};

template <class T, int M, int P, bool kAll, class Store>
inline void mix_columns(const T* const* factors, const BlockedRows<T>& rows, int64_t column, int64_t count, Store store_at) {
  Vec acc[M][2 * P];
  for (int m = 0; m < M; m++)
    for (int v = 0; v < 2 * P; v++) acc[m][v] = set(0.0f);
  for (int64_t k = 0, b = 0; k < rows.num_rows; k += rows.block_rows, b++) {
    const T* at[M];
    for (int m = 0; m < M; m++) at[m] = factors[m] + k;
    Mixer<T>::template add_rows<M, P, kAll>(
        acc, at, rows.blocks[b] + column, rows.ld, smaller(rows.block_rows, rows.num_rows - k), count);
  }
  for (int m = 0; m < M; m++)
    for (int p = 0; p < P; p++) {
      Mixer<T>::in_order(acc[m][2 * p], acc[m][2 * p + 1]);
      for (int v = 2 * p; v < 2 * p + 2; v++) {
        int64_t left = count - v * kLanes;
        if (left > 0) store_at(m, column + v * kLanes, acc[m][v], smaller(left, kLanes));
      }
    }
}

// Calls store_at(m, column, sum over k of factors[m][k] rows[k][column...], count) for all `width` columns.
template <class T, int M, class Store>
inline void mix_rows(const T* const* factors, const BlockedRows<T>& rows, int64_t width, Store store_at) {
  // Enough accumulators to hide the latency of the multiply-add, few enough to stay in registers.
  constexpr int P = M == 1 ? 4 : M == 2 || kLanes == 16 ? 2 : 1;
  constexpr int kStep = 2 * kLanes * P;
  int64_t c = 0;
  for (; c + kStep <= width; c += kStep) mix_columns<T, M, P, true>(factors, rows, c, kStep, store_at);
  for (; c < width; c += 2 * kLanes)
    mix_columns<T, M, 1, false>(factors, rows, c, smaller(2 * kLanes, width - c), store_at);
}

}  // namespace
