#pragma once
// A model without weights. What it remembers of a token lies in the cell that the page table names, and what it says
// next is a hash of all cells of the text, read through the table: a wrong page, a stale page or a wrong order changes
// the text. Reference texts come from the same hashes without any page.

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "sampling/likeliest.h"
#include "sampling/penalties.h"
#include "sampling/sampler.h"
#include "serve/executor.h"
#include "serve/request.h"

namespace outrider::serve::test {

inline uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9E3779B97F4A7C15ULL + b + 0x7F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

inline ModelShape FakeShape() {
  ModelShape shape;
  shape.vocab = 40;
  shape.context = 96;
  shape.experts = 5;
  shape.kv_page_tokens = 4;
  shape.kv_pages = 256;
  shape.route_pages = 512;
  shape.step_tokens_max = 64;
  return shape;
}

// One number per token and page.
class FakeCells {
 public:
  FakeCells(int64_t pages, int64_t page_tokens)
      : page_tokens_(page_tokens), cells_(static_cast<size_t>(pages * page_tokens), 0xDEAD) {}

  uint64_t& At(std::span<const int32_t> pages, int64_t position) {
    OUTRIDER_CHECK(position / page_tokens_ < static_cast<int64_t>(pages.size()), "no page for position ", position);
    const auto page = static_cast<int64_t>(pages[static_cast<size_t>(position / page_tokens_)]);
    return cells_.at(static_cast<size_t>(page * page_tokens_ + position % page_tokens_));
  }
  uint64_t Fold(std::span<const int32_t> pages, int64_t end) {
    uint64_t hash = 1;
    for (int64_t position = 0; position < end; ++position) hash = Mix(hash, At(pages, position));
    return hash;
  }

 private:
  const int64_t page_tokens_;
  std::vector<uint64_t> cells_;
};

// `written`: by a machine that takes prompts by another path.
inline uint64_t KvCell(int32_t id, ExpertId expert, int64_t position, bool written) {
  return Mix(Mix(static_cast<uint64_t>(id), expert), static_cast<uint64_t>(position) + (written ? 1'000'000 : 0));
}

inline float FakeLogit(uint64_t text, int64_t id) {
  return static_cast<float>(Mix(text, static_cast<uint64_t>(id)) % 4096) / 512.0F - 4.0F;
}

// Stays with the expert of the token in front three times of four.
inline ExpertId FakeExpert(uint64_t text, ExpertId previous, int64_t experts) {
  if (previous != kNoExpert && text % 4 != 0) return previous;
  return static_cast<ExpertId>((text >> 8) % static_cast<uint64_t>(experts));
}

class FakeExecutor : public Executor {
 public:
  explicit FakeExecutor(ModelShape shape = FakeShape()) : shape_(shape), cells_(shape.kv_pages, shape.kv_page_tokens) {}

  const ModelShape& shape() const override { return shape_; }
  int64_t FfnBytes(uint16_t experts) const override { return 1000 * __builtin_popcount(experts); }
  int64_t FixedBytes() const override { return 5000; }

  base::Result<RunCost> Run(std::span<const TokenRun> runs, std::span<float> logits) override {
    ++passes;
    for (const TokenRun& run : runs) {
      for (size_t i = 0; i < run.ids.size(); ++i) {
        const int64_t position = run.position + static_cast<int64_t>(i);
        const ExpertId expert = run.experts.empty() ? kNoExpert : run.experts[i];
        const bool written = shape_.prompts_apart && static_cast<int64_t>(i) >= run.prompt;
        cells_.At(run.kv_pages, position) = fails ? 0xBAD : KvCell(run.ids[i], expert, position, written);
      }
    }
    if (fails) return base::Fail(code, "the machine failed as told");
    auto out = logits.begin();
    for (const TokenRun& run : runs) {
      for (auto i = run.logits_from; i < static_cast<int64_t>(run.ids.size()); ++i) {
        const uint64_t text = cells_.Fold(run.kv_pages, run.position + i + 1);
        for (int64_t id = 0; id < shape_.vocab; ++id)
          *out++ = id == 7 && bad_logit != 0 ? bad_logit : FakeLogit(text, id);
      }
    }
    OUTRIDER_CHECK(out == logits.end(), "rows of logits do not fit");
    RunCost cost;
    cost.weight_bytes = FixedBytes();
    cost.seconds = 1e-5;
    if (!shape_.prompts_apart) return cost;
    for (const TokenRun& run : runs) cost.prompt_tokens += run.prompt;
    if (cost.prompt_tokens > 0) cost.prompt_seconds = prompt_pass_s;
    return cost;
  }

  base::Result<RunCost> RunGreedy(std::span<const TokenRun> runs, std::span<int64_t> best) override {
    const auto vocab = static_cast<size_t>(shape_.vocab);
    std::vector<float> logits(best.size() * vocab);
    auto cost = Run(runs, logits);
    for (size_t row = 0; row < best.size(); ++row)
      best[row] = sampling::LikeliestId(std::span(logits).subspan(row * vocab, vocab));
    ++greedy_passes;
    return cost;
  }

  int64_t passes = 0, greedy_passes = 0;
  bool fails = false;  // the next passes
  std::string code = "E_FAKE";
  float bad_logit = 0;          // of id 7, unless 0
  double prompt_pass_s = 6e-6;  // of a pass that prompts have for themselves, whatever its length

 private:
  const ModelShape shape_;
  FakeCells cells_;
};

class FakePregate : public Pregate {
 public:
  explicit FakePregate(ModelShape shape = FakeShape())
      : shape_(shape), cells_(shape.route_pages, shape.kv_page_tokens) {}

  base::Result<void> Route(std::span<const RouteRun> runs, std::span<ExpertId> experts) override {
    auto out = experts.begin();
    for (const RouteRun& run : runs) {
      ExpertId previous = run.previous;
      for (size_t i = 0; i < run.ids.size(); ++i) {
        const int64_t position = run.position + static_cast<int64_t>(i);
        cells_.At(run.route_pages, position) = Mix(static_cast<uint64_t>(run.ids[i]), 77);
        previous = FakeExpert(cells_.Fold(run.route_pages, position + 1), previous, shape_.experts);
        *out++ = previous;
      }
    }
    const bool told = fails_of > 0 && std::ssize(experts) == fails_of;
    if (told && throws) throw std::runtime_error("told to throw");
    if (fails || told) return base::Fail(code, "the router failed as told");
    return {};
  }

  bool fails = false;
  int64_t fails_of = 0;  // calls of so many tokens
  bool throws = false;   // in place of failing of those
  std::string code = "E_FAKE_ROUTER";

 private:
  const ModelShape shape_;
  FakeCells cells_;
};

// What a request has to write, computed by itself and without pages.
struct ReferenceText {
  std::vector<int32_t> written;
  std::vector<ExpertId> experts;  // of prompt and text
  Finish finish = Finish::kLength;
};

inline ReferenceText Reference(const Request& request, const ModelShape& shape = FakeShape()) {
  ReferenceText out;
  std::vector<int32_t> text = request.prompt;
  const SamplingParams& s = request.sampling;
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t end = request.max_tokens == 0 ? shape.context : prompt + request.max_tokens;
  sampling::TokenCounts counts;
  counts.AddPrompt(request.prompt);
  uint64_t kv = 1, route = 1;
  ExpertId previous = kNoExpert;
  for (int64_t position = 0; position < std::ssize(text); ++position) {
    const int32_t id = text[static_cast<size_t>(position)];
    if (shape.experts > 0) {
      route = Mix(route, Mix(static_cast<uint64_t>(id), 77));
      out.experts.push_back(previous = FakeExpert(route, previous, shape.experts));
    }
    kv = Mix(kv, KvCell(id, previous, position, shape.prompts_apart && position >= prompt));
    if (position + 1 < prompt || position + 1 == end) continue;
    std::vector<float> logits(static_cast<size_t>(shape.vocab));
    for (int64_t v = 0; v < shape.vocab; ++v) logits[static_cast<size_t>(v)] = FakeLogit(kv, v);
    if (s.presence_penalty != 0 || s.frequency_penalty != 0 || s.repetition_penalty != 1)
      counts.Apply({s.presence_penalty, s.frequency_penalty, s.repetition_penalty}, logits);
    const auto token = static_cast<int32_t>(sampling::PickToken(logits, {s.temperature, s.top_k, s.top_p, s.seed},
                                                                static_cast<uint64_t>(position + 1 - prompt)));
    if (std::find(request.stop_ids.begin(), request.stop_ids.end(), token) != request.stop_ids.end()) {
      out.finish = Finish::kStop;
      break;
    }
    out.written.push_back(token);
    text.push_back(token);
    counts.AddWritten(token);
  }
  return out;
}

}  // namespace outrider::serve::test
