#pragma once
// Decode: a walk over channel records in stored order, for all tokens of a step at once. The order of operations for
// one token depends on its own expert only: two sums per dot product, joined in a fixed order, and outputs that take
// the channels one after another.

#include <cstddef>
#include <cstdint>

#include "kernels/engine.h"
#include "kernels/vector_math.h"

namespace outrider::kernels {

struct Channel {
  const std::byte* record;
  const std::byte* next;  // to be prefetched while this one is read
  uint16_t signature;
};

// silu(gate) * up of one channel.
template <class V>
float Activate(float gate, float up) {
  float lanes[V::kLanes];
  V::Store(lanes, SiluTimes<V>(V::Set(gate), V::Set(up)));
  return lanes[0];
}

// Records of fp32 or bf16, multiplied in fp32.
template <class V, bool kFromBf16>
struct FloatRecords {
  using F = typename V::F;
  using Form = FloatForm<V, kFromBf16>;
  static constexpr Number kNumber = Form::kNumber;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kBytes = kFromBf16 ? 2 : 4;

  static const std::byte* Token(const StepTokens& tokens, int64_t token, int64_t width) {
    return reinterpret_cast<const std::byte*>(tokens.x + token * width);
  }

  // h of tokens a and b (which may be the same) for one channel.
  template <bool kPrefetch>
  static void Hidden(const Channel& channel, int64_t width, const std::byte* token_a, const std::byte* token_b,
                     float* ha, float* hb) {
    const auto* a = reinterpret_cast<const float*>(token_a);
    const auto* b = reinterpret_cast<const float*>(token_b);
    const std::byte* gate = channel.record;
    const std::byte* up = gate + width * kBytes;
    F ga[2], gb[2], ua[2], ub[2];
    OUTRIDER_UNROLLED
    for (int i = 0; i < 2; ++i) ga[i] = gb[i] = ua[i] = ub[i] = V::Zero();
    for (int64_t j = 0; j < width; j += 32) {
      if constexpr (kPrefetch) {
        const std::byte* ahead = channel.next + j * kBytes;
        for (int64_t line = 0; line < 32 * kBytes; line += 64) {
          __builtin_prefetch(ahead + line);
          __builtin_prefetch(ahead + width * kBytes + line);
          __builtin_prefetch(ahead + 2 * width * kBytes + line);
        }
      }
      for (int64_t k = j; k < j + 32; k += 2 * kLanes) {
        OUTRIDER_UNROLLED
        for (int64_t i = 0; i < 2; ++i) {
          const int64_t at = k + i * kLanes;
          const F g = Form::LoadNumbers(gate + at * kBytes), u = Form::LoadNumbers(up + at * kBytes);
          const F xa = V::Load(a + at), xb = V::Load(b + at);
          ga[i] = V::MulAdd(ga[i], xa, g);
          ua[i] = V::MulAdd(ua[i], xa, u);
          gb[i] = V::MulAdd(gb[i], xb, g);
          ub[i] = V::MulAdd(ub[i], xb, u);
        }
      }
    }
    *ha = Activate<V>(V::Sum(V::Add(ga[0], ga[1])), V::Sum(V::Add(ua[0], ua[1])));
    *hb = Activate<V>(V::Sum(V::Add(gb[0], gb[1])), V::Sum(V::Add(ub[0], ub[1])));
  }

  template <int N>
  static void AddColumns(const float* h, const std::byte* const* records, int64_t width, float* sum) {
    F factors[N];
    OUTRIDER_UNROLLED
    for (int i = 0; i < N; ++i) factors[i] = V::Set(h[i]);
    for (int64_t o = 0; o < width; o += kLanes) {
      F s = V::Load(sum + o);
      OUTRIDER_UNROLLED
      for (int i = 0; i < N; ++i)
        s = V::MulAdd(s, factors[i], Form::LoadNumbers(records[i] + (2 * width + o) * kBytes));
      V::Store(sum + o, s);
    }
  }

  static constexpr DecodeEngine Table(const char* name, decltype(DecodeEngine::walk) walk) {
    return {name, kNumber, walk, nullptr, nullptr};
  }
};

// Records of either kind, walked for all tokens of a step.
template <class V, class Records>
struct DecodeWalk {
  static constexpr int64_t kBatch = 4;  // channels whose outputs are added together

  static void WalkBatch(const Channel* channels, int64_t count, int64_t width, const StepTokens& tokens, float* sums) {
    float h[kBatch][kDecodeTokensMax];
    for (int64_t c = 0; c < count; ++c) {
      int64_t ready[kDecodeTokensMax + 1], n = 0;
      for (int64_t t = 0; t < tokens.count; ++t)
        if ((channels[c].signature & tokens.bits[t]) != 0) ready[n++] = t;
      ready[n] = ready[n - 1];  // a walked channel has at least one token
      for (int64_t i = 0; i < n; i += 2) {
        const std::byte* a = Records::Token(tokens, ready[i], width);
        const std::byte* b = Records::Token(tokens, ready[i + 1], width);
        const auto hidden = i == 0 ? &Records::template Hidden<true> : &Records::template Hidden<false>;
        hidden(channels[c], width, a, b, &h[c][ready[i]], &h[c][ready[i + 1]]);
      }
    }
    for (int64_t t = 0; t < tokens.count; ++t) {
      float factors[kBatch];
      const std::byte* records[kBatch];
      int64_t n = 0;
      for (int64_t c = 0; c < count; ++c) {
        if ((channels[c].signature & tokens.bits[t]) == 0) continue;
        factors[n] = h[c][t];
        records[n++] = channels[c].record;
      }
      float* sum = sums + t * width;
      switch (n) {
        case 0:
          break;
        case 1:
          Records::template AddColumns<1>(factors, records, width, sum);
          break;
        case 2:
          Records::template AddColumns<2>(factors, records, width, sum);
          break;
        case 3:
          Records::template AddColumns<3>(factors, records, width, sum);
          break;
        default:
          Records::template AddColumns<4>(factors, records, width, sum);
      }
    }
  }

  static void Walk(const LayerView& layer, const uint16_t* signatures, const StepTokens& tokens, int64_t first,
                   int64_t last, float* sums) {
    constexpr int64_t kList = 128;
    const int64_t record_bytes = RecordBytes(Records::kNumber, layer.width);
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

  static constexpr DecodeEngine Table(const char* name) { return Records::Table(name, &Walk); }
};

}  // namespace outrider::kernels
