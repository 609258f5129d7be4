#include "kernels/decode.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/bf16.h"
#include "kernels/cpu.h"

namespace outrider::kernels {
namespace {

// Sums are joined by part, so parts are fixed. Runs of channels are dealt to them in turns: wherever in the stored
// order an expert has its channels, each part gets its share of them, and threads that take parts have equal work.
constexpr int64_t kParts = 16, kRun = 32;

constexpr int64_t kJoined = 192;  // numbers of one token that a task joins

enum class Rows : uint8_t { kF32, kBf16 };

// x and y of one call, either of which may be bf16 bits.
struct Call {
  const void* x = nullptr;
  void* y = nullptr;
  Rows rows = Rows::kF32;
  Into into = Into::kSet;
  std::span<const uint8_t> experts;
};

// Numbers [first, first + count) of y from the sums of all parts; factors: of these numbers, or null.
void Join(float* sums, int64_t size, int64_t first, int64_t count, const float* factors, const Call& call) {
  const TokenEngine& engine = *TokenEngines().front();
  if (call.rows == Rows::kF32) {
    float* y = static_cast<float*>(call.y) + first;
    engine.join(sums + first, kParts, size, count, factors, call.into == Into::kAdd, y);
    return;
  }
  engine.join(sums + first, kParts, size, count, factors, false, sums + first);
  for (int64_t i = first; i < first + count; ++i) static_cast<uint16_t*>(call.y)[i] = Bf16Of(sums[i]);
}

// x as fp32, at `to` where it is not.
const float* Widened(const Call& call, int64_t count, float* to) {
  if (call.rows == Rows::kF32) return static_cast<const float*>(call.x);
  const auto* from = static_cast<const uint16_t*>(call.x);
  for (int64_t i = 0; i < count; ++i) to[i] = FloatOf(from[i]);
  return to;
}

base::Result<void> Run(const ChannelStore& store, const Call& call, const DecodeEngine& engine, Scratch& scratch,
                       Workers& workers) {
  OUTRIDER_CHECK(engine.number == store.number(), engine.name);
  if (auto checked = CheckExperts(store, call.experts); !checked) return checked;
  const auto tokens = static_cast<int64_t>(call.experts.size());
  if (tokens > kDecodeTokensMax)
    return base::Fail("E_SHAPE", std::to_string(tokens) + " tokens in one step, expected at most " +
                                     std::to_string(kDecodeTokensMax));
  if (tokens == 0) return {};
  const int64_t width = store.width(), size = tokens * width, channels = store.channels();
  scratch.Clear();
  const int64_t x_at = scratch.Add(call.rows == Rows::kF32 ? 0 : size * 4), sums_at = scratch.Add(kParts * size * 4);
  const int64_t staged_bytes = engine.stage == nullptr ? 0 : engine.staged_bytes(width);
  const int64_t staged_at = scratch.Add(tokens * staged_bytes);
  scratch.Commit();
  const float* x = Widened(call, size, reinterpret_cast<float*>(scratch.Get(x_at)));
  auto* sums = reinterpret_cast<float*>(scratch.Get(sums_at));
  std::byte* staged = scratch.Get(staged_at);
  if (engine.stage != nullptr)
    workers.Run(tokens, [&](int64_t t, int) { engine.stage(x + t * width, width, staged + t * staged_bytes); });
  uint16_t bits[kDecodeTokensMax];
  for (int64_t t = 0; t < tokens; ++t) bits[t] = static_cast<uint16_t>(1U << call.experts[static_cast<size_t>(t)]);
  const LayerView layer{store.records(), width, store.number()};
  // A thread claims its next part before it walks one, so that what it prefetches at the end is what it reads next.
  std::atomic<int64_t> claimed{0};
  workers.Run(std::min<int64_t>(workers.threads(), kParts), [&](int64_t, int) {
    const auto claim = [&] { return claimed.fetch_add(1, std::memory_order_relaxed); };
    bool cold = true;
    for (int64_t part = claim(), next = 0; part < kParts; part = next, cold = false) {
      next = claim();
      float* own = sums + part * size;
      std::fill(own, own + size, 0.0F);
      engine.walk(layer, store.signatures().data(), {x, bits, tokens, staged},
                  {.first = part * kRun,
                   .run = kRun,
                   .stride = kParts * kRun,
                   .end = channels,
                   .cold = cold,
                   .then = next < kParts ? next * kRun : -1},
                  own);
    }
  });
  const int64_t pieces = (width + kJoined - 1) / kJoined;
  workers.Run(tokens * pieces, [&](int64_t task, int) {
    const int64_t at = task % pieces * kJoined;
    const float* factors = store.output_scales() == nullptr ? nullptr : store.output_scales() + at;
    Join(sums, size, task / pieces * width + at, std::min(kJoined, width - at), factors, call);
  });
  return {};
}

}  // namespace

base::Result<void> Decode(const ChannelStore& store, const FfnBatch& batch, const DecodeEngine& engine,
                          Scratch& scratch, Workers& workers) {
  const Rows rows = store.number() == Number::kBf16 ? Rows::kBf16 : Rows::kF32;
  return Run(store, {batch.x, batch.y, rows, Into::kSet, batch.experts}, engine, scratch, workers);
}

base::Result<void> Decode(const ChannelStore& store, const FloatBatch& batch, const DecodeEngine& engine,
                          Scratch& scratch, Workers& workers) {
  return Run(store, {batch.x, batch.y, Rows::kF32, batch.into, batch.experts}, engine, scratch, workers);
}

base::Result<void> Decode(const ChannelStore& store, const FfnBatch& batch, Scratch& scratch, Workers& workers) {
  return Decode(store, batch, *DecodeEngines(store.number()).front(), scratch, workers);
}

}  // namespace outrider::kernels
