#pragma once
// Decode: a walk over channel records in stored order, for all tokens of a step at once. The order of operations for
// one token depends on its own expert only: two sums per dot product, joined in a fixed order, and outputs that take
// the channels one after another.

#include <cstddef>
#include <cstdint>

#include "kernels/engine.h"
#include "kernels/vector_math.h"

namespace outrider::kernels {

template <class V, bool kFromBf16>
struct DecodeWalk {
  using F = typename V::F;
  using Form = FloatForm<V, kFromBf16>;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kNumber = kFromBf16 ? 2 : 4;  // bytes
  static constexpr int64_t kBatch = 4;                   // channels whose outputs are added together

  struct Channel {
    const std::byte* record;
    const std::byte* next;  // to be prefetched while this one is read
    uint16_t signature;
  };

  // h of tokens a and b (which may be the same) for one channel.
  template <bool kPrefetch>
  static void Hidden(const Channel& channel, int64_t width, const float* a, const float* b, float* ha, float* hb) {
    const std::byte* gate = channel.record;
    const std::byte* up = gate + width * kNumber;
    F ga[2], gb[2], ua[2], ub[2];
    OUTRIDER_UNROLLED
    for (int i = 0; i < 2; ++i) ga[i] = gb[i] = ua[i] = ub[i] = V::Zero();
    for (int64_t j = 0; j < width; j += 32) {
      if constexpr (kPrefetch) {
        const std::byte* ahead = channel.next + j * kNumber;
        for (int64_t line = 0; line < 32 * kNumber; line += 64) {
          __builtin_prefetch(ahead + line);
          __builtin_prefetch(ahead + width * kNumber + line);
          __builtin_prefetch(ahead + 2 * width * kNumber + line);
        }
      }
      for (int64_t k = j; k < j + 32; k += 2 * kLanes) {
        OUTRIDER_UNROLLED
        for (int64_t i = 0; i < 2; ++i) {
          const int64_t at = k + i * kLanes;
          const F g = Form::LoadNumbers(gate + at * kNumber), u = Form::LoadNumbers(up + at * kNumber);
          const F xa = V::Load(a + at), xb = V::Load(b + at);
          ga[i] = V::MulAdd(ga[i], xa, g);
          ua[i] = V::MulAdd(ua[i], xa, u);
          gb[i] = V::MulAdd(gb[i], xb, g);
          ub[i] = V::MulAdd(ub[i], xb, u);
        }
      }
    }
    *ha = Activate(V::Sum(V::Add(ga[0], ga[1])), V::Sum(V::Add(ua[0], ua[1])));
    *hb = Activate(V::Sum(V::Add(gb[0], gb[1])), V::Sum(V::Add(ub[0], ub[1])));
  }

  static float Activate(float gate, float up) {
    float lanes[kLanes];
    V::Store(lanes, SiluTimes<V>(V::Set(gate), V::Set(up)));
    return lanes[0];
  }

  template <int N>
  static void AddColumns(const float* h, const std::byte* const* columns, int64_t width, float* sum) {
    F factors[N];
    OUTRIDER_UNROLLED
    for (int i = 0; i < N; ++i) factors[i] = V::Set(h[i]);
    for (int64_t o = 0; o < width; o += kLanes) {
      F s = V::Load(sum + o);
      OUTRIDER_UNROLLED
      for (int i = 0; i < N; ++i) s = V::MulAdd(s, factors[i], Form::LoadNumbers(columns[i] + o * kNumber));
      V::Store(sum + o, s);
    }
  }

  static void WalkBatch(const Channel* channels, int64_t count, int64_t width, const StepTokens& tokens, float* sums) {
    float h[kBatch][kDecodeTokensMax];
    for (int64_t c = 0; c < count; ++c) {
      int64_t ready[kDecodeTokensMax + 1], n = 0;
      for (int64_t t = 0; t < tokens.count; ++t)
        if ((channels[c].signature & tokens.bits[t]) != 0) ready[n++] = t;
      ready[n] = ready[n - 1];  // a walked channel has at least one token
      for (int64_t i = 0; i < n; i += 2) {
        const float* a = tokens.x + ready[i] * width;
        const float* b = tokens.x + ready[i + 1] * width;
        const auto hidden = i == 0 ? &Hidden<true> : &Hidden<false>;
        hidden(channels[c], width, a, b, &h[c][ready[i]], &h[c][ready[i + 1]]);
      }
    }
    for (int64_t t = 0; t < tokens.count; ++t) {
      float factors[kBatch];
      const std::byte* columns[kBatch];
      int64_t n = 0;
      for (int64_t c = 0; c < count; ++c) {
        if ((channels[c].signature & tokens.bits[t]) == 0) continue;
        factors[n] = h[c][t];
        columns[n++] = channels[c].record + 2 * width * kNumber;
      }
      float* sum = sums + t * width;
      switch (n) {
        case 0:
          break;
        case 1:
          AddColumns<1>(factors, columns, width, sum);
          break;
        case 2:
          AddColumns<2>(factors, columns, width, sum);
          break;
        case 3:
          AddColumns<3>(factors, columns, width, sum);
          break;
        default:
          AddColumns<4>(factors, columns, width, sum);
      }
    }
  }

  static void Walk(const LayerView& layer, const uint16_t* signatures, const StepTokens& tokens, int64_t first,
                   int64_t last, float* sums) {
    constexpr int64_t kList = 128;
    const int64_t record_bytes = 3 * layer.width * kNumber;
    uint16_t wanted = 0;
    for (int64_t t = 0; t < tokens.count; ++t) wanted = static_cast<uint16_t>(wanted | tokens.bits[t]);
    for (int64_t c = first; c < last;) {
      Channel list[kList + kBatch];
      int64_t count = 0;
      for (; c < last && count < kList; ++c)
        if ((signatures[c] & wanted) != 0)
          list[count++] = {layer.records + c * record_bytes, layer.records + c * record_bytes, signatures[c]};
      for (int64_t i = 0; i + kBatch < count; ++i) list[i].next = list[i + kBatch].record;
      for (int64_t i = 0; i < count; i += kBatch)
        WalkBatch(list + i, count - i < kBatch ? count - i : kBatch, layer.width, tokens, sums);
    }
  }

  static constexpr DecodeEngine Table(const char* name) { return {name, Form::kNumber, &Walk}; }
};

}  // namespace outrider::kernels
