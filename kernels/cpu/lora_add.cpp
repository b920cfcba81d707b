// out += scale (B (A x) + bias) per row and sub-module, and DoRA's gain upon that: shrink and expand of a tile of rows
// in one go, weights read in place.
#include "products.h"

namespace lorayard::LORAYARD_LEVEL {
namespace {

// What else a sub-module's adapter does to its columns; each part is null where the adapter has none.
struct Extras {
  const float* bias;  // [width], of lora_B
  const float* dora;  // [5, width]: magnitude, |W|^2, 2 W.BA, |BA|^2 of each row, bias of the base
  int64_t width;

  // Finishes columns c... of a row: v is the base's output plus the adapter's product.
  Vec operator()(Vec v, float scale, int64_t c, int64_t n) const {
    if (bias) v = fma(set(scale), load(bias + c, n), v);
    if (!dora) return v;
    auto term = [&](int64_t row) { return load(dora + row * width + c, n); };
    Vec s = set(scale), base_bias = term(4);
    // Where there are no columns the terms are 0, and so is what nobody stores.
    Vec square_norm = fma(s, fma(s, term(3), term(2)), term(1));
    return fma(div(term(0), root(square_norm)), sub(v, base_bias), base_bias);
  }
};

template <class T, int M>
void add_slice(const T* const* x, int64_t in_features, const int64_t* weights, const float* scales, int64_t width, T* const* out) {
  Extras extras{reinterpret_cast<const float*>(weights[3]), reinterpret_cast<const float*>(weights[4]), width};
  bool has_extras = weights[3] || weights[4];
  auto a = reinterpret_cast<const T*>(weights[0]);  // [rank, in_features]
  auto b = reinterpret_cast<const T*>(weights[1]);  // [rank, width]
  int64_t rank = weights[2];
  float exact[M][kMaxRank];
  T shrunk[M][kMaxRank];
  float* sums_at[M];
  const T* factors[M];
  for (int m = 0; m < M; m++) {
    sums_at[m] = exact[m];
    factors[m] = shrunk[m];
  }
  dot_rows<T, M>(x, a, in_features, in_features, rank, sums_at);
  for (int m = 0; m < M; m++)
    for (int64_t r = 0; r < rank; r += kLanes) {
      int64_t n = smaller(kLanes, rank - r);
      store(shrunk[m] + r, mul(set(scales[m]), load(exact[m] + r, n)), n);
    }
  BlockedRows<T> rows{&b, rank, width, rank};
  mix_rows<T, M>(factors, rows, width, [&](int m, int64_t c, Vec v, int64_t n) {
    Vec sum = add(load(out[m] + c, n), v);
    store(out[m] + c, has_extras ? extras(sum, scales[m], c, n) : sum, n);
  });
}

template <class T, int M>
void add_tile(const LoraArgs& a, int64_t row, int64_t run) {
  const T* x[M];
  T* out[M];
  for (int m = 0; m < M; m++) x[m] = static_cast<const T*>(a.x) + (row + m) * a.in_features;
  const int64_t* adapter = a.runs + kRunColumns * run + 2;
  const int64_t* entries = a.table + adapter[0] * a.slot_stride + adapter[1] * a.num_slices * kEntryColumns;
  for (int64_t s = 0; s < a.num_slices; s++) {
    const int64_t* weights = entries + s * kEntryColumns;
    if (weights[2] == 0) continue;
    for (int m = 0; m < M; m++) out[m] = static_cast<T*>(a.out) + (row + m) * a.out_stride + a.columns[s];
    add_slice<T, M>(x, a.in_features, weights, a.scales + row, a.columns[s + 1] - a.columns[s], out);
  }
}

template <class T>
void add_tiles(const LoraArgs& a, int64_t first, int64_t end) {
  for (int64_t t = first; t < end; t++) {
    const int64_t* tile = a.tiles + 3 * t;
    switch (tile[1]) {
      case 1: add_tile<T, 1>(a, tile[0], tile[2]); break;
      case 2: add_tile<T, 2>(a, tile[0], tile[2]); break;
      case 3: add_tile<T, 3>(a, tile[0], tile[2]); break;
      default: add_tile<T, 4>(a, tile[0], tile[2]);
    }
  }
}

}  // namespace

void lora_add(const LoraArgs& a, int64_t first, int64_t end) {
  a.is_bf16 ? add_tiles<Bf16>(a, first, end) : add_tiles<float>(a, first, end);
}

}  // namespace lorayard::LORAYARD_LEVEL
