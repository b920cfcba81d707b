// out = x W^T + bias, W of 4 or 8 bit codes: a few rows of W are spread out in the cache and serve all rows of x.
#include "products.h"

namespace lorayard::LORAYARD_LEVEL {
namespace {

constexpr int64_t kChunk = 16;  // columns that lie in one block, see `is_aligned`

// W[row][column] = (table[code] - zero) scale, with the scale and the zero of its block.
struct Block {
  float scale, zero;
};
inline Block block_at(const QuantizedArgs& a, int64_t index) {
  return {a.scales[index], a.zeros ? static_cast<float>(a.zeros[index]) : 0.0f};
}

// A byte of a 4 bit row holds column j of a span of 32 below, and column j + 16 above.
inline int code_at(const QuantizedArgs& a, const uint8_t* codes, int64_t column) {
  if (a.bits == 8) return codes[column];
  return codes[column / 32 * 16 + column % 16] >> (column % 32 < 16 ? 0 : 4) & 15;
}

#ifdef LORAYARD_AVX512
inline __m512i bytes(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Vec numbers(__m512i codes) { return _mm512_cvtepi32_ps(codes); }
struct Table {
  Vec all;
  explicit Table(const float* p) : all(load(p)) {}
  Vec operator()(__m512i codes) const { return _mm512_permutexvar_ps(codes, all); }
};
inline __m512i nibbles(const uint8_t* p, bool high) {
  __m512i b = bytes(p);
  return high ? _mm512_srli_epi32(b, 4) : _mm512_and_si512(b, _mm512_set1_epi32(15));
}
#else
inline __m256i bytes(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline Vec numbers(__m256i codes) { return _mm256_cvtepi32_ps(codes); }
struct Table {
  Vec low, high;
  explicit Table(const float* p) : low(load(p)), high(load(p + 8)) {}
  Vec operator()(__m256i codes) const {
    Vec is_high = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));  // bit 3 of the code becomes the sign
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes), is_high);
  }
};
inline __m256i nibbles(const uint8_t* p, bool high) {
  __m256i b = bytes(p);
  return high ? _mm256_srli_epi32(b, 4) : _mm256_and_si256(b, _mm256_set1_epi32(15));
}
#endif

template <class T>
inline void spread_chunk(const QuantizedArgs& a, const Table& table, const uint8_t* codes, int64_t column, Block b, T* out) {
  Vec zero = set(b.zero), scale = set(b.scale);
  for (int64_t i = 0; i < kChunk; i += kLanes) {
    Vec value;
    if (a.bits == 8) {
      value = numbers(bytes(codes + column + i));
    } else {
      value = table(nibbles(codes + column / 32 * 16 + i, column % 32 != 0));
    }
    store(out + column + i, mul(sub(value, zero), scale), kLanes);
  }
}

template <class T>
void spread_row(const QuantizedArgs& a, const Table& table, int64_t row, T* out) {
  const uint8_t* codes = a.codes + row * a.row_bytes;
  int64_t position = row * a.in_features, index = position / a.block, left = a.block - position % a.block;
  Block b = block_at(a, index);
  int64_t step = a.is_aligned ? kChunk : 1;
  for (int64_t c = 0; c < a.in_features; c += step, left -= step) {
    if (left == 0) {
      b = block_at(a, ++index);
      left = a.block;
    }
    if (a.is_aligned) {
      spread_chunk(a, table, codes, c, b, out);
    } else {
      int code = code_at(a, codes, c);
      store(out + c, set(((a.bits == 8 ? static_cast<float>(code) : a.table[code]) - b.zero) * b.scale), 1);
    }
  }
}

template <class T, int M>
void multiply_tile(const QuantizedArgs& a, const T* weight, int64_t row, int64_t column, int64_t num_columns) {
  const T* x[M];
  float results[M][kBlockMultiple];
  float* to[M];
  for (int m = 0; m < M; m++) {
    x[m] = static_cast<const T*>(a.x) + (row + m) * a.in_features;
    to[m] = results[m];
  }
  dot_rows<T, M>(x, weight, a.in_features, a.in_features, num_columns, to);
  for (int m = 0; m < M; m++)
    for (int64_t c = 0; c < num_columns; c += kLanes) {
      int64_t n = smaller(kLanes, num_columns - c);
      Vec v = load(results[m] + c, n);
      if (a.bias) v = add(v, load(static_cast<const T*>(a.bias) + column + c, n));
      store(static_cast<T*>(a.out) + (row + m) * a.out_stride + column + c, v, n);
    }
}

template <class T>
void multiply(const QuantizedArgs& a, T* weight, int64_t first, int64_t end) {
  float codes[16] = {};
  Table table(a.bits == 4 ? a.table : codes);
  for (int64_t block = first; block < end; block++) {
    int64_t column = block * kBlockMultiple;
    int64_t num_columns = smaller(kBlockMultiple, a.out_features - column);
    for (int64_t c = 0; c < num_columns; c++) spread_row(a, table, column + c, weight + c * a.in_features);
    int64_t row = 0;
    for (; row + 4 <= a.num_rows; row += 4) multiply_tile<T, 4>(a, weight, row, column, num_columns);
    if (a.num_rows - row == 3) multiply_tile<T, 3>(a, weight, row, column, num_columns);
    if (a.num_rows - row == 2) multiply_tile<T, 2>(a, weight, row, column, num_columns);
    if (a.num_rows - row == 1) multiply_tile<T, 1>(a, weight, row, column, num_columns);
  }
}

}  // namespace

// A block is kBlockMultiple outputs; `scratch` has room for that many rows of W in the type of x.
void quantized_linear(const QuantizedArgs& a, void* scratch, int64_t first, int64_t end) {
  a.is_bf16 ? multiply(a, static_cast<Bf16*>(scratch), first, end) : multiply(a, static_cast<float*>(scratch), first, end);
}

}  // namespace lorayard::LORAYARD_LEVEL
