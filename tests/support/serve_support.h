#pragma once
// Requests for tests of the engine, and what came out of it by stream.

#include <cstdint>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "base/check.h"
#include "sched/baselines.h"
#include "serve/admission.h"
#include "serve/options.h"
#include "serve/request.h"
#include "support/fake_machine.h"

namespace outrider::serve::test {

struct Told {
  std::vector<int32_t> tokens;
  std::vector<ExpertId> experts;
  std::vector<TokenLogprob> logprobs;
  std::vector<Finish> finishes;
  Event last;
};

using ToldStreams = std::map<StreamId, Told>;

inline void Collect(ToldStreams& streams, std::vector<Event> events) {
  for (Event& event : events) {
    Told& told = streams[event.stream];
    told.tokens.insert(told.tokens.end(), event.tokens.begin(), event.tokens.end());
    told.experts.insert(told.experts.end(), event.experts.begin(), event.experts.end());
    told.logprobs.insert(told.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
    if (event.finish == Finish::kNone) continue;
    told.finishes.push_back(event.finish);
    told.last = std::move(event);
  }
}

// On a clock of the test's own, which must outlive the options.
inline EngineOptions CompleteOnClock(EngineOptions options, const ModelShape& shape, const int64_t* now_ns) {
  options.now_ns = [now_ns] { return *now_ns; };
  auto complete = CompleteOptions(std::move(options), shape);
  OUTRIDER_CHECK(complete.has_value(), complete.error().message);
  return std::move(*complete);
}

inline EngineOptions TestOptions() {
  EngineOptions options;
  options.policy = &sched::PlanChunkedFcfs;
  options.limits.decode_tokens = 16;
  options.limits.prefill_tokens = 48;
  options.self_check = EngineOptions::SelfCheck::kOn;
  return options;
}

// A prompt that shares its first half with others, and any kind of sampling.
inline Request RandomRequest(std::mt19937_64& random, const ModelShape& shape = FakeShape()) {
  const auto below = [&random](uint64_t bound) { return static_cast<int64_t>(random() % bound); };
  Request request;
  const int64_t length = 1 + below(40), family = below(3);
  for (int64_t i = 0; i < length; ++i) {
    const bool shared = i < length / 2 + 4;
    request.prompt.push_back(
        static_cast<int32_t>(shared ? (i * 7 + family) % shape.vocab : below(static_cast<uint64_t>(shape.vocab))));
  }
  request.max_tokens = 1 + below(30);
  if (below(2) == 0) {
    request.sampling = {.temperature = 0.5 + 0.1 * static_cast<double>(below(10)),
                        .top_k = below(2) * 10,
                        .top_p = below(2) == 0 ? 1.0 : 0.9,
                        .seed = random()};
  }
  if (below(3) == 0) {
    request.sampling.presence_penalty = 0.5;
    request.sampling.frequency_penalty = 0.25;
    request.sampling.repetition_penalty = 1.5;
  }
  if (below(3) == 0) request.stop_ids = {static_cast<int32_t>(below(static_cast<uint64_t>(shape.vocab)))};
  return request;
}

inline std::vector<Request> RandomRequests(uint64_t seed, int count) {
  std::mt19937_64 random(seed);
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) requests.push_back(RandomRequest(random));
  return requests;
}

}  // namespace outrider::serve::test
