#pragma once
// What happens to one token between two matrices: norm, rotary positions, silu, attention, rounding to whole numbers.
// Every sum has a fixed order of its own, by element or by position.

#include <cstddef>
#include <cstdint>

#include "kernels/engine.h"
#include "kernels/vector_math.h"

namespace outrider::kernels {

template <class V>
struct TokenWork {
  using F = typename V::F;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int kScores = kPageTokens / V::kLanes;  // vectors of the scores of a page
  static constexpr int kWide = 4;                          // vectors of a value that are summed together

  static float RootOf(float x) { return __builtin_sqrtf(x); }

  static void Norm(const float* x, const float* weight, int64_t size, float eps, float* y) {
    F even = V::Zero(), odd = V::Zero();
    int64_t i = 0;
    for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
      const F a = V::Load(x + i), b = V::Load(x + i + kLanes);
      even = V::MulAdd(even, a, a);
      odd = V::MulAdd(odd, b, b);
    }
    float sum = V::Sum(V::Add(even, odd));
    for (; i < size; ++i) sum += x[i] * x[i];
    const float factor = 1.0F / RootOf(sum / static_cast<float>(size) + eps);
    const F all = V::Set(factor);
    for (i = 0; i + kLanes <= size; i += kLanes)
      V::Store(y + i, V::Mul(V::Load(weight + i), V::Mul(V::Load(x + i), all)));
    for (; i < size; ++i) y[i] = weight[i] * (x[i] * factor);
  }

  static void Silu(float* x, int64_t size) {
    const F one = V::Set(1.0F);
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) V::Store(x + i, SiluTimes<V>(V::Load(x + i), one));
    float rest[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) rest[k] = i + k < size ? x[i + k] : 0.0F;
    V::Store(rest, SiluTimes<V>(V::Load(rest), one));
    for (int64_t k = 0; i + k < size; ++k) x[i + k] = rest[k];
  }

  static void Join(const float* parts, int64_t count, int64_t stride, int64_t size, const float* factors, bool add,
                   float* y) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      F total = V::Load(parts + i);
      for (int64_t part = 1; part < count; ++part) total = V::Add(total, V::Load(parts + part * stride + i));
      if (factors != nullptr) total = V::Mul(total, V::Load(factors + i));
      V::Store(y + i, add ? V::Add(V::Load(y + i), total) : total);
    }
    for (; i < size; ++i) {
      float total = parts[i];
      for (int64_t part = 1; part < count; ++part) total += parts[part * stride + i];
      if (factors != nullptr) total *= factors[i];
      y[i] = add ? y[i] + total : total;
    }
  }

  static void Rotate(float* head, const float* cos, const float* sin, int64_t half) {
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const F a = V::Load(head + i), b = V::Load(head + half + i), c = V::Load(cos + i), s = V::Load(sin + i);
      V::Store(head + i, V::MulAdd(V::Mul(a, c), V::Mul(b, V::Set(-1.0F)), s));
      V::Store(head + half + i, V::MulAdd(V::Mul(b, c), a, s));
    }
    for (; i < half; ++i) {
      const float a = head[i], b = head[half + i];
      head[i] = a * cos[i] - b * sin[i];
      head[half + i] = b * cos[i] + a * sin[i];
    }
  }

  static F Abs(F x) { return V::Max(x, V::Mul(x, V::Set(-1.0F))); }

  static float Highest(F x) {
    float lanes[kLanes];
    V::Store(lanes, x);
    float most = lanes[0];
    for (int64_t i = 1; i < kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
    return most;
  }

  static void Quantise(const float* x, int64_t blocks, int16_t* q, float* scales) {
    for (int64_t b = 0; b < blocks; ++b, x += kBlock, q += kBlock) {
      F most = V::Zero();
      OUTRIDER_UNROLLED
      for (int64_t i = 0; i < kBlock; i += kLanes) most = V::Max(most, Abs(V::Load(x + i)));
      const float highest = Highest(most);
      scales[b] = highest / 32767;
      const F factor = V::Set(highest > 0 ? 32767 / highest : 0.0F);
      OUTRIDER_UNROLLED
      for (int64_t i = 0; i < kBlock; i += kLanes) V::StoreWhole(q + i, V::Round(V::Mul(V::Load(x + i), factor)));
    }
  }

  // Scores of H heads for the sixteen positions of one page. Prefetches its values and the keys of the page behind it:
  // between two passes over a model nothing of them stays in the cache.
  template <int H>
  static void PageScores(const float* keys, const float* next_keys, const float* q, int64_t dim, F scale, float* scores,
                         int64_t stride) {
    F even[H][kScores], odd[H][kScores];
    OUTRIDER_UNROLLED
    for (int h = 0; h < H; ++h) OUTRIDER_UNROLLED
    for (int v = 0; v < kScores; ++v) even[h][v] = odd[h][v] = V::Zero();
    const float* values = keys + dim * kPageTokens;
    for (int64_t d = 0; d < dim; d += 2) {
      OUTRIDER_UNROLLED
      for (int64_t line = d; line < d + 2; ++line) {
        __builtin_prefetch(values + line * kPageTokens);
        __builtin_prefetch(next_keys + line * kPageTokens);
      }
      OUTRIDER_UNROLLED
      for (int v = 0; v < kScores; ++v) {
        const F a = V::Load(keys + d * kPageTokens + v * kLanes),
                b = V::Load(keys + (d + 1) * kPageTokens + v * kLanes);
        OUTRIDER_UNROLLED
        for (int h = 0; h < H; ++h) {
          even[h][v] = V::MulAdd(even[h][v], V::Broadcast(q + h * dim + d), a);
          odd[h][v] = V::MulAdd(odd[h][v], V::Broadcast(q + h * dim + d + 1), b);
        }
      }
    }
    OUTRIDER_UNROLLED
    for (int h = 0; h < H; ++h) OUTRIDER_UNROLLED
    for (int v = 0; v < kScores; ++v)
      V::Store(scores + h * stride + v * kLanes, V::Mul(V::Add(even[h][v], odd[h][v]), scale));
  }

  // Replaces the scores of positions [first, last] by their softmax without the division; returns what to divide by.
  static float Soften(float* scores, int64_t begin, int64_t first, int64_t last) {
    const int64_t end = (last - begin) / kPageTokens * kPageTokens + kPageTokens;
    for (int64_t i = 0; i < first - begin; ++i) scores[i] = -__builtin_inff();
    for (int64_t i = last - begin + 1; i < end; ++i) scores[i] = -__builtin_inff();
    F most = V::Load(scores);
    for (int64_t i = kLanes; i < end; i += kLanes) most = V::Max(most, V::Load(scores + i));
    const F less = V::Set(-Highest(most));
    F sum = V::Zero();
    for (int64_t i = 0; i < end; i += kLanes) {
      const F e = Exp<V>(V::Add(V::Load(scores + i), less));
      V::Store(scores + i, e);
      sum = V::Add(sum, e);
    }
    return V::Sum(sum);
  }

  // Values of W vectors from `values` on, added up for H heads over positions [first, last].
  template <int H, int W>
  static void Mix(const KvView& view, int64_t begin, int64_t offset, int64_t padded, const float* scores,
                  int64_t stride, const float* divisors, float* out) {
    F sums[H][W];
    OUTRIDER_UNROLLED
    for (int h = 0; h < H; ++h) OUTRIDER_UNROLLED
    for (int w = 0; w < W; ++w) sums[h][w] = V::Zero();
    for (int64_t at = view.first; at <= view.last;) {
      const int64_t page = at / kPageTokens, page_end = (page + 1) * kPageTokens - 1;
      const int64_t stop = page_end < view.last ? page_end : view.last;
      const float* values = view.cache + view.pages[page] * view.page_floats + view.head_dim * kPageTokens + offset;
      for (; at <= stop; ++at) {
        const float* value = values + at % kPageTokens * padded;
        OUTRIDER_UNROLLED
        for (int w = 0; w < W; ++w) {
          const F v = V::Load(value + w * kLanes);
          OUTRIDER_UNROLLED
          for (int h = 0; h < H; ++h)
            sums[h][w] = V::MulAdd(sums[h][w], V::Broadcast(scores + h * stride + at - begin), v);
        }
      }
    }
    OUTRIDER_UNROLLED
    for (int h = 0; h < H; ++h) OUTRIDER_UNROLLED
    for (int w = 0; w < W; ++w) {
      float lanes[kLanes];
      V::Store(lanes, V::Div(sums[h][w], V::Set(divisors[h])));
      for (int64_t i = 0; i < kLanes && offset + w * kLanes + i < view.head_dim; ++i)
        out[h * view.head_dim + offset + w * kLanes + i] = lanes[i];
    }
  }

  template <int H>
  static void AttendHeads(const KvView& view, const float* q, float* scores, float* out) {
    const int64_t dim = view.head_dim, padded = (dim + kPageTokens - 1) / kPageTokens * kPageTokens;
    const int64_t begin = view.first / kPageTokens * kPageTokens;
    const int64_t stride = (view.last - begin) / kPageTokens * kPageTokens + kPageTokens;
    const F scale = V::Set(view.scale);
    const int64_t last_page = view.last / kPageTokens;
    for (int64_t page = begin / kPageTokens; page <= last_page; ++page) {
      const float* keys = view.cache + view.pages[page] * view.page_floats;
      const float* next_keys = page < last_page ? view.cache + view.pages[page + 1] * view.page_floats : keys;
      PageScores<H>(keys, next_keys, q, dim, scale, scores + page * kPageTokens - begin, stride);
    }
    float divisors[H];
    for (int h = 0; h < H; ++h) divisors[h] = Soften(scores + h * stride, begin, view.first, view.last);
    int64_t offset = 0;
    for (; offset + kWide * kLanes <= padded; offset += kWide * kLanes)
      Mix<H, kWide>(view, begin, offset, padded, scores, stride, divisors, out);
    for (; offset < padded; offset += kLanes) Mix<H, 1>(view, begin, offset, padded, scores, stride, divisors, out);
  }

  static void Attend(const KvView& view, const float* q, float* scores, float* out) {
    for (int64_t h = 0; h < view.group;) {
      const int64_t left = view.group - h < V::kHeads ? view.group - h : V::kHeads;
      const float* query = q + h * view.head_dim;
      float* result = out + h * view.head_dim;
      switch (left) {
        case 1:
          AttendHeads<1>(view, query, scores, result);
          break;
        case 2:
          AttendHeads<2 <= V::kHeads ? 2 : 1>(view, query, scores, result);
          break;
        case 3:
          AttendHeads<3 <= V::kHeads ? 3 : 1>(view, query, scores, result);
          break;
        default:
          AttendHeads<V::kHeads>(view, query, scores, result);
      }
      h += left;
    }
  }

  static constexpr TokenEngine Table(const char* name) { return {name, &Norm, &Silu, &Rotate, &Join, &Attend}; }
};

}  // namespace outrider::kernels
