// Grouped-query attention over the paged cache, read in place; sums are cut where positions say, never by cores.
#include "products.h"

namespace lorayard::LORAYARD_LEVEL {
namespace {

// x = x / sqrt(mean(x^2) + eps) weight, one head.
template <class T>
void norm(T* x, const float* weight, int64_t head_dim, float eps) {
  Vec squares = set(0.0f);
  for (int64_t c = 0; c < head_dim; c += kLanes) {
    Vec part = load(x + c, smaller(kLanes, head_dim - c));
    squares = fma(part, part, squares);
  }
  Vec factor = set(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(head_dim) + eps));
  for (int64_t c = 0; c < head_dim; c += kLanes) {
    int64_t n = smaller(kLanes, head_dim - c);
    store(x + c, mul(mul(load(x + c, n), factor), load(weight + c, n)), n);
  }
}

template <class T>
void rotate(const T* x, const T* cos, const T* sin, int64_t rotary_dim, T* out) {
  int64_t half = rotary_dim / 2;
  for (int64_t c = 0; c < half; c += kLanes) {
    int64_t n = smaller(kLanes, half - c);
    Vec x1 = load(x + c, n), x2 = load(x + half + c, n);
    store(out + c, fma(x1, load(cos + c, n), mul(x2, load(sin + c, n))), n);
    store(out + half + c, fma(x2, load(cos + half + c, n), mul(x1, load(sin + half + c, n))), n);
  }
}

template <class T>
void copy(const T* from, int64_t n, T* to) {
  __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
}

template <class T>
T* cache_row(const AttentionArgs& a, void* cache, int64_t seq, int64_t head, int64_t position) {
  int64_t block = a.block_tables[seq * a.max_blocks + position / a.block_size];
  return static_cast<T*>(cache) +
         ((block * a.num_kv_heads + head) * a.block_size + position % a.block_size) * a.head_dim;
}

template <class T>
void rotate_rows(const AttentionArgs& a, int64_t first, int64_t end) {
  int64_t num_columns = (a.num_heads + 2 * a.num_kv_heads) * a.head_dim;
  for (int64_t i = first; i < end; i++) {
    int64_t seq = a.token_seqs[i], row = a.spans[3 * seq] + a.token_rows[i];
    int64_t position = a.spans[3 * seq + 2] + a.token_rows[i];
    T* q = static_cast<T*>(a.qkv) + row * num_columns;
    T* k = q + a.num_heads * a.head_dim;
    const T* v = k + a.num_kv_heads * a.head_dim;
    const T* cos = static_cast<const T*>(a.cos) + row * a.rotary_dim;
    const T* sin = static_cast<const T*>(a.sin) + row * a.rotary_dim;
    for (int64_t h = 0; h < a.num_heads; h++) {
      T* head = q + h * a.head_dim;
      if (a.q_norm) norm(head, a.q_norm, a.head_dim, a.norm_eps);
      rotate(head, cos, sin, a.rotary_dim, head);
    }
    for (int64_t h = 0; h < a.num_kv_heads; h++) {
      T *head = k + h * a.head_dim, *kept = cache_row<T>(a, a.keys, seq, h, position);
      if (a.k_norm) norm(head, a.k_norm, a.head_dim, a.norm_eps);
      rotate(head, cos, sin, a.rotary_dim, kept);
      copy(head + a.rotary_dim, a.head_dim - a.rotary_dim, kept + a.rotary_dim);
      copy(v + h * a.head_dim, a.head_dim, cache_row<T>(a, a.values, seq, h, position));
    }
  }
}

inline float softmax_scale(const AttentionArgs& a) { return a.softcap > 0.0f ? 1.0f : a.scale; }

// Up to four (row, query head) pairs that share a key head, and one split of their tokens.
struct Item {
  int64_t seq, head, group, split, num_splits;
};

Item item_at(const AttentionArgs& a, int64_t index) {
  int64_t low = 0, high = a.num_seqs;
  while (high - low > 1) {
    int64_t middle = (low + high) / 2;
    (a.first_items[middle] <= index ? low : high) = middle;
  }
  int64_t rest = index - a.first_items[low], splits = num_splits(a, low), groups = num_groups(a, low);
  return {low, rest / (splits * groups), rest / splits % groups, rest % splits, splits};
}

constexpr float kHidden = -3.0e38f;

// score = softcap tanh(scale score / softcap), which leaves nothing for the softmax to scale.
void cap(float* scores, int64_t n, float scale, float softcap) {
  for (int64_t j = 0; j < n; j += kLanes) {
    Vec e = exponential(mul(set(2.0f * scale / softcap), load(scores + j)));
    Vec tanh = sub(set(1.0f), div(set(2.0f), add(e, set(1.0f))));
    store(scores + j, mul(set(softcap), tanh), kLanes);
  }
}

// The weight of a head's sink beside scores of which `max` is the greatest.
inline Vec sink_weight(const AttentionArgs& a, int64_t head, float max) {
  return exponential(set(a.sinks[head] - softmax_scale(a) * max));
}

// Turns scores `from` to n into e^(scale (score - max)), writes them as factors, and zeros around up to `padded`.
template <class T>
void soften(float* scores, int64_t from, int64_t n, int64_t padded, float scale, T* factors, float& max, float& total) {
  Vec best = set(kHidden), added = set(0.0f);
  for (int64_t j = 0; j < from; j++) scores[j] = kHidden;
  for (int64_t j = 0; j < n; j += kLanes) {
    int64_t some = smaller(kLanes, n - j);
    for (int64_t t = j + some; t < j + kLanes; t++) scores[t] = kHidden;
    best = highest(best, load(scores + j));
  }
  float lanes[kLanes];
  store(lanes, best, kLanes);
  max = lanes[0];
  for (int i = 1; i < kLanes; i++) max = lanes[i] > max ? lanes[i] : max;
  for (int64_t j = 0; j < padded; j += kLanes) {
    int64_t some = n - j;
    Vec p = some > 0 ? exponential(mul(set(scale), sub(load(scores + j), set(max)))) : set(0.0f);
    if (some > 0 && (some < kLanes || j < from)) {
      store(lanes, p, kLanes);
      for (int64_t t = 0; t < smaller(from - j, kLanes); t++) lanes[t] = 0.0f;
      p = load(lanes, some);
    }
    added = add(added, p);
    store(factors + j, p, kLanes);
  }
  total = sum(added);
}

template <class T, int M>
void attend_item(const AttentionArgs& a, const Item& item, float* partial) {
  constexpr int64_t kWidest = kSplitTokens + kLanes;
  const int32_t* span = a.spans + 3 * item.seq;
  int64_t shared = a.num_heads / a.num_kv_heads, first = item.split * kSplitTokens, last = first + kSplitTokens;
  int64_t num_columns = (a.num_heads + 2 * a.num_kv_heads) * a.head_dim, begins[M], ends[M], start = last, end = first;
  alignas(64) float scores[M][kWidest];
  alignas(64) T factors[M][kWidest];
  const T* q[M];
  const T* p[M];
  T* out[M];
  for (int m = 0; m < M; m++) {
    int64_t pair = item.group * kTileRows + m, row = span[0] + pair / shared;
    int64_t head = item.head * shared + pair % shared;
    q[m] = static_cast<const T*>(a.qkv) + row * num_columns + head * a.head_dim;
    out[m] = static_cast<T*>(a.out) + (row * a.num_heads + head) * a.head_dim;
    p[m] = factors[m];
    int64_t position = span[2] + pair / shared;
    begins[m] = larger(a.window ? position - a.window + 1 : 0, first);
    ends[m] = smaller(position + 1, last);
    if (begins[m] >= ends[m]) continue;
    start = smaller(begins[m], start);
    end = larger(ends[m], end);
  }
  if (start >= end) {  // no row sees any of this split, so there are several
    for (int m = 0; m < M; m++) {
      partial[m * (a.head_dim + 2)] = kHidden;
      partial[m * (a.head_dim + 2) + 1] = 0.0f;
    }
    return;
  }
  start -= start % a.block_size;  // blocks before the window are not read
  const T* blocks[kSplitTokens / kBlockMultiple + 1];
  int64_t num_tokens = end - start, num_blocks = 0;
  for (int64_t t = 0; t < num_tokens; t += a.block_size) {
    float* to[M];
    for (int m = 0; m < M; m++) to[m] = scores[m] + t;
    dot_rows<T, M>(q, cache_row<T>(a, a.keys, item.seq, item.head, start + t), a.head_dim, a.head_dim,
                   smaller(a.block_size, num_tokens - t), to);
    blocks[num_blocks++] = cache_row<T>(a, a.values, item.seq, item.head, start + t);
  }
  float max[M], total[M];
  int64_t padded = (num_tokens + kLanes - 1) / kLanes * kLanes;
  for (int m = 0; m < M; m++) {
    bool sees = begins[m] < ends[m];
    int64_t from = sees ? begins[m] - start : 0, n = sees ? ends[m] - start : 0;
    if (a.softcap > 0.0f) cap(scores[m], n, a.scale, a.softcap);
    soften(scores[m], from, n, padded, softmax_scale(a), factors[m], max[m], total[m]);
  }
  BlockedRows<T> rows{blocks, a.block_size, a.head_dim, num_tokens};
  if (item.num_splits == 1) {
    for (int m = 0; a.sinks && m < M; m++) {
      float lanes[kLanes];
      store(lanes, add(sink_weight(a, item.head * shared + (item.group * kTileRows + m) % shared, max[m]), set(total[m])), kLanes);
      total[m] = lanes[0];
    }
    mix_rows<T, M>(p, rows, a.head_dim, [&](int m, int64_t c, Vec v, int64_t n) {
      store(out[m] + c, div(v, set(total[m])), n);
    });
    return;
  }
  for (int m = 0; m < M; m++) {
    partial[m * (a.head_dim + 2)] = max[m];
    partial[m * (a.head_dim + 2) + 1] = total[m];
  }
  mix_rows<T, M>(p, rows, a.head_dim, [&](int m, int64_t c, Vec v, int64_t n) {
    store(partial + m * (a.head_dim + 2) + 2 + c, v, n);
  });
}

template <class T>
void attend_items(const AttentionArgs& a, int64_t first, int64_t end) {
  for (int64_t i = first; i < end; i++) {
    Item item = item_at(a, i);
    int64_t pairs = a.spans[3 * item.seq + 1] * (a.num_heads / a.num_kv_heads);
    float* partial = a.partials ? a.partials + i * kTileRows * (a.head_dim + 2) : nullptr;
    switch (pairs - item.group * kTileRows) {
      case 1: attend_item<T, 1>(a, item, partial); break;
      case 2: attend_item<T, 2>(a, item, partial); break;
      case 3: attend_item<T, 3>(a, item, partial); break;
      default: attend_item<T, 4>(a, item, partial);
    }
  }
}

// One pair's splits, weighted by e^(scale (their max - the overall max)), in the order of their positions.
template <class T>
void merge_pair(const AttentionArgs& a, int64_t head, const float* partial, int64_t stride, int64_t splits, T* out) {
  float max = partial[0];
  for (int64_t s = 1; s < splits; s++) max = partial[s * stride] > max ? partial[s * stride] : max;
  for (int64_t c = 0; c < a.head_dim; c += kLanes) {
    int64_t n = smaller(kLanes, a.head_dim - c);
    Vec total = set(0.0f), acc = set(0.0f);
    if (a.sinks) total = sink_weight(a, head, max);  // once, whatever the number of splits
    for (int64_t s = 0; s < splits; s++) {
      const float* part = partial + s * stride;
      if (part[1] == 0.0f) continue;  // the row sees none of this split
      Vec weight = exponential(set(softmax_scale(a) * (part[0] - max)));
      total = fma(weight, set(part[1]), total);
      acc = fma(weight, load(part + 2 + c, n), acc);
    }
    store(out + c, div(acc, total), n);
  }
}

template <class T>
void merge_seqs(const AttentionArgs& a, int64_t first, int64_t end) {
  int64_t shared = a.num_heads / a.num_kv_heads, width = a.head_dim + 2, stride = kTileRows * width;
  for (int64_t seq = first; seq < end; seq++) {
    int64_t splits = num_splits(a, seq), groups = num_groups(a, seq);
    if (splits == 1) continue;
    int64_t num_pairs = a.spans[3 * seq + 1] * shared;
    for (int64_t h = 0; h < a.num_kv_heads; h++)
      for (int64_t pair = 0; pair < num_pairs; pair++) {
        int64_t item = a.first_items[seq] + (h * groups + pair / kTileRows) * splits;
        int64_t row = a.spans[3 * seq] + pair / shared, head = h * shared + pair % shared;
        merge_pair(a, head, a.partials + item * stride + pair % kTileRows * width, stride, splits,
                   static_cast<T*>(a.out) + (row * a.num_heads + head) * a.head_dim);
      }
  }
}

}  // namespace

void rotate_and_store(const AttentionArgs& a, int64_t first, int64_t end) {
  a.is_bf16 ? rotate_rows<Bf16>(a, first, end) : rotate_rows<float>(a, first, end);
}

void attend(const AttentionArgs& a, int64_t first, int64_t end) {
  a.is_bf16 ? attend_items<Bf16>(a, first, end) : attend_items<float>(a, first, end);
}

void merge_splits(const AttentionArgs& a, int64_t first, int64_t end) {
  a.is_bf16 ? merge_seqs<Bf16>(a, first, end) : merge_seqs<float>(a, first, end);
}

}  // namespace lorayard::LORAYARD_LEVEL
