#pragma once
// Decode: a walk over channel records in stored order, for all tokens of a step at once. The order of operations for
// one token depends on its own expert only: two sums per dot product, joined in a fixed order, and outputs that take
// the channels one after another.

#include <cstddef>
#include <cstdint>

#include "kernels/channel_window.h"
#include "kernels/engine.h"
#include "kernels/vector_math.h"

namespace outrider::kernels {

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

  // gate x and up x of T tokens for one channel. Prefetches the record `next`.
  template <int T, bool kPrefetch>
  static void Products(const std::byte* record, const std::byte* next, int64_t width, const std::byte* const* tokens,
                       float* gates, float* ups) {
    const std::byte* gate = record;
    const std::byte* up = gate + width * kBytes;
    F g[T][2], u[T][2];
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) g[t][0] = g[t][1] = u[t][0] = u[t][1] = V::Zero();
    for (int64_t j = 0; j < width; j += 32) {
      if constexpr (kPrefetch) {
        for (int64_t line = 3 * j * kBytes; line < 3 * (j + 32) * kBytes; line += 64) __builtin_prefetch(next + line);
      }
      for (int64_t k = j; k < j + 32; k += 2 * kLanes) {
        OUTRIDER_UNROLLED
        for (int64_t i = 0; i < 2; ++i) {
          const int64_t at = k + i * kLanes;
          const F gate_row = Form::LoadNumbers(gate + at * kBytes), up_row = Form::LoadNumbers(up + at * kBytes);
          OUTRIDER_UNROLLED
          for (int t = 0; t < T; ++t) {
            const F x = V::Load(reinterpret_cast<const float*>(tokens[t]) + at);
            g[t][i] = V::MulAdd(g[t][i], x, gate_row);
            u[t][i] = V::MulAdd(u[t][i], x, up_row);
          }
        }
      }
    }
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) {
      gates[t] = V::Sum(V::Add(g[t][0], g[t][1]));
      ups[t] = V::Sum(V::Add(u[t][0], u[t][1]));
    }
  }

  // Adds N channels' outputs, one after another, to the sums of T tokens; h [T, kTogether].
  template <int N, int T>
  static void AddColumns(const float* h, const std::byte* const* records, int64_t width, float* const* sums) {
    F factors[T][N];
    OUTRIDER_UNROLLED
    for (int t = 0; t < T; ++t) OUTRIDER_UNROLLED
    for (int i = 0; i < N; ++i) factors[t][i] = V::Set(h[t * kTogether + i]);
    for (int64_t o = 0; o < width; o += kLanes) {
      F columns[N];
      OUTRIDER_UNROLLED
      for (int i = 0; i < N; ++i) columns[i] = Form::LoadNumbers(records[i] + (2 * width + o) * kBytes);
      OUTRIDER_UNROLLED
      for (int t = 0; t < T; ++t) {
        F s = V::Load(sums[t] + o);
        OUTRIDER_UNROLLED
        for (int i = 0; i < N; ++i) s = V::MulAdd(s, factors[t][i], columns[i]);
        V::Store(sums[t] + o, s);
      }
    }
  }

  // gate x and up x of C channels for one token.
  template <int C>
  static void ProductsOfOne(const std::byte* const* records, int64_t width, const std::byte* token, LinesAhead& ahead,
                            float* gates, float* ups) {
    F g[2][C], u[2][C];
    const std::byte* row[C];
    OUTRIDER_UNROLLED
    for (int c = 0; c < C; ++c) {
      g[0][c] = g[1][c] = u[0][c] = u[1][c] = V::Zero();
      row[c] = records[c];
    }
    const auto* x = reinterpret_cast<const float*>(token);
    for (int64_t j = 0; j < width; j += 32) {
      ahead.Ask<C * kBytes>();
      for (int64_t k = j; k < j + 32; k += 2 * kLanes) {
        OUTRIDER_UNROLLED
        for (int64_t i = 0; i < 2; ++i) {
          const int64_t at = k + i * kLanes;
          const F value = V::Load(x + at);
          OUTRIDER_UNROLLED
          for (int c = 0; c < C; ++c) {
            g[i][c] = V::MulAdd(g[i][c], value, Form::LoadNumbers(row[c] + at * kBytes));
            u[i][c] = V::MulAdd(u[i][c], value, Form::LoadNumbers(row[c] + (width + at) * kBytes));
          }
        }
      }
    }
    OUTRIDER_UNROLLED
    for (int c = 0; c < C; ++c) {
      g[0][c] = V::Add(g[0][c], g[1][c]);
      u[0][c] = V::Add(u[0][c], u[1][c]);
    }
    V::Sums(g[0], gates);
    V::Sums(u[0], ups);
  }

  // Outputs of N channels for one token.
  template <int N>
  static void OutputsOfOne(const float* h, const std::byte* const* records, int64_t width, LinesAhead& ahead,
                           float* sum) {
    F factors[N];
    const std::byte* column[N];
    OUTRIDER_UNROLLED
    for (int i = 0; i < N; ++i) {
      factors[i] = V::Set(h[i]);
      column[i] = records[i] + 2 * width * kBytes;
    }
    for (int64_t j = 0; j < width; j += 32) {
      ahead.Ask<(N * kBytes + 1) / 2>();
      OUTRIDER_UNROLLED
      for (int64_t i = 0; i < 32; i += kLanes) {
        const int64_t o = j + i;
        F s = V::Load(sum + o);
        OUTRIDER_UNROLLED
        for (int n = 0; n < N; ++n) s = V::MulAdd(s, factors[n], Form::LoadNumbers(column[n] + o * kBytes));
        V::Store(sum + o, s);
      }
    }
  }

  static constexpr DecodeEngine Table(const char* name, decltype(DecodeEngine::walk) walk) {
    return {name, kNumber, walk, nullptr, nullptr};
  }
};

// Records of either kind, walked for all tokens of a step.
template <class V, class Records>
struct DecodeWalk {
  using F = typename V::F;
  static constexpr int kTile = V::kRecordTokens, kAtOnce = V::kRecordsAtOnce;

  // Products of a few channels with the tokens that have them, one behind another.
  struct Products {
    float gates[kTogether * kDecodeTokensMax + V::kLanes], ups[kTogether * kDecodeTokensMax + V::kLanes];
    uint8_t tokens[kTogether * kDecodeTokensMax];
    int64_t ends[kTogether];

    // gates = silu(gate) * up
    void Activate(int64_t count) {
      for (int64_t i = count; i < count + V::kLanes; ++i) gates[i] = ups[i] = 0;
      for (int64_t i = 0; i < count; i += V::kLanes)
        V::Store(gates + i, SiluTimes<V>(V::Load(gates + i), V::Load(ups + i)));
    }
  };

  template <bool kPrefetch>
  static void Tile(int64_t count, const std::byte* record, const std::byte* next, int64_t width,
                   const std::byte* const* rows, float* gates, float* ups) {
    if (count >= kTile)
      Records::template Products<kTile, kPrefetch>(record, next, width, rows, gates, ups);
    else if (count >= 2)
      Records::template Products<2 <= kTile ? 2 : 1, kPrefetch>(record, next, width, rows, gates, ups);
    else
      Records::template Products<1, kPrefetch>(record, next, width, rows, gates, ups);
  }

  static void Multiply(const Channel& channel, const std::byte* next, int64_t width, const StepTokens& tokens,
                       Products& out, int64_t& at) {
    const std::byte* rows[kDecodeTokensMax];
    int64_t n = 0;
    for (int64_t t = 0; t < tokens.count; ++t) {
      if ((channel.signature & tokens.bits[t]) == 0) continue;
      out.tokens[at + n] = static_cast<uint8_t>(t);
      rows[n++] = Records::Token(tokens, t, width);
    }
    for (int64_t i = 0; i < n;) {
      const int64_t left = n - i;
      if (i == 0)
        Tile<true>(left, channel.record, next, width, rows + i, out.gates + at + i, out.ups + at + i);
      else
        Tile<false>(left, channel.record, next, width, rows + i, out.gates + at + i, out.ups + at + i);
      i += left >= kTile ? kTile : left >= 2 && kTile >= 2 ? 2 : 1;
    }
    at += n;
  }

  template <int N>
  static void AddOne(const float* h, const std::byte* const* records, int64_t width, float* sum) {
    Records::template AddColumns<N, 1>(h, records, width, &sum);
  }

  // Outputs of one token that has some of the channels.
  static void AddSome(int64_t count, const float* h, const std::byte* const* records, int64_t width, float* sum) {
    switch (count) {
      case 1:
        return AddOne<1>(h, records, width, sum);
      case 2:
        return AddOne<2>(h, records, width, sum);
      case 3:
        return AddOne<3>(h, records, width, sum);
      default:
        return AddOne<4>(h, records, width, sum);
    }
  }

  // Outputs of tokens that have all kTogether channels.
  static void AddAll(int64_t count, const float* h, const std::byte* const* records, int64_t width,
                     float* const* sums) {
    int64_t i = 0;
    for (; i + kTile <= count; i += kTile)
      Records::template AddColumns<kTogether, kTile>(h + i * kTogether, records, width, sums + i);
    for (; i < count; ++i) AddOne<kTogether>(h + i * kTogether, records, width, sums[i]);
  }

  static void WalkBatch(const ChannelWindow& channels, int64_t count, int64_t width, const StepTokens& tokens,
                        float* sums) {
    Products products;
    int64_t all = 0;
    for (int64_t c = 0; c < count; ++c) {
      Multiply(channels[c], channels.Behind(c), width, tokens, products, all);
      products.ends[c] = all;
    }
    products.Activate(all);
    float h[kDecodeTokensMax][kTogether], full_h[kDecodeTokensMax * kTogether];
    uint8_t channel_of[kDecodeTokensMax][kTogether];
    int64_t has[kDecodeTokensMax] = {};
    for (int64_t c = 0, at = 0; c < count; ++c) {
      for (; at < products.ends[c]; ++at) {
        const int64_t t = products.tokens[at];
        h[t][has[t]] = products.gates[at];
        channel_of[t][has[t]++] = static_cast<uint8_t>(c);
      }
    }
    const std::byte* records[kTogether];
    float* full[kDecodeTokensMax];
    int64_t fulls = 0;
    for (int64_t t = 0; t < tokens.count; ++t) {
      if (has[t] == kTogether) {
        for (int64_t i = 0; i < kTogether; ++i) full_h[fulls * kTogether + i] = h[t][i];
        full[fulls++] = sums + t * width;
      } else if (has[t] > 0) {
        for (int64_t i = 0; i < has[t]; ++i) records[i] = channels[channel_of[t][i]].record;
        AddSome(has[t], h[t], records, width, sums + t * width);
      }
    }
    if (fulls == 0) return;
    for (int64_t i = 0; i < kTogether; ++i) records[i] = channels[i].record;
    AddAll(fulls, full_h, records, width, full);
  }

  // Some channels of a token that is alone in its step, and so has all that are wanted.
  struct Batch {
    const std::byte *records[kAtOnce], *next[kAtOnce + 1];
    float h[kAtOnce + V::kLanes] = {}, ups[kAtOnce + V::kLanes] = {};
    int64_t count = 0;

    int64_t Take(ChannelWindow& channels) {
      count = channels.Take(kAtOnce);
      for (int64_t i = 0; i < count; ++i) {
        records[i] = channels[i].record;
        next[i] = channels.Behind(i);
      }
      next[count] = records[0];
      return count;
    }

    // h = silu(gate) * up
    void Activate() {
      for (int64_t i = 0; i < count; i += V::kLanes) V::Store(h + i, SiluTimes<V>(V::Load(h + i), V::Load(ups + i)));
    }
  };

  // Outputs come two batches late: what they are multiplied with takes long, and is known by then.
  static void WalkOne(ChannelWindow& channels, int64_t width, const std::byte* token, float* sum) {
    const int64_t record_bytes = RecordBytes(Records::kNumber, width);
    Batch batches[3];
    Batch *now = batches, *before = batches + 1, *first = batches + 2;
    while (now->Take(channels) == kAtOnce) {
      LinesAhead ahead(now->next, record_bytes);
      Records::template ProductsOfOne<kAtOnce>(now->records, width, token, ahead, now->h, now->ups);
      if (before->count > 0) before->Activate();
      if (first->count > 0) Records::template OutputsOfOne<kAtOnce>(first->h, first->records, width, ahead, sum);
      Batch* const done = first;
      first = before;
      before = now;
      now = done;
    }
    if (before->count > 0) before->Activate();
    if (first->count > 0) AddOne<kAtOnce>(first->h, first->records, width, sum);
    if (before->count > 0) AddOne<kAtOnce>(before->h, before->records, width, sum);
    if (now->count == 0) return;
    for (int64_t i = 0; i < now->count; ++i)
      Records::template Products<1, true>(now->records[i], now->next[i], width, &token, now->h + i, now->ups + i);
    now->Activate();
    AddSome(now->count, now->h, now->records, width, sum);
  }

  static void Walk(const LayerView& layer, const uint16_t* signatures, const StepTokens& tokens,
                   const ChannelRuns& runs, float* sums) {
    uint16_t wanted = 0;
    for (int64_t t = 0; t < tokens.count; ++t) wanted = static_cast<uint16_t>(wanted | tokens.bits[t]);
    ChannelWindow channels(layer, signatures, wanted, runs);
    if (tokens.count == 1) return WalkOne(channels, layer.width, Records::Token(tokens, 0, layer.width), sums);
    while (const int64_t count = channels.Take()) WalkBatch(channels, count, layer.width, tokens, sums);
  }

  static constexpr DecodeEngine Table(const char* name) { return Records::Table(name, &Walk); }
};

}  // namespace outrider::kernels
