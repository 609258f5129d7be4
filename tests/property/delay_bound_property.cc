// The bound on delay that the policy `outrider` promises (holding.h), with skewed arrivals that come back.

#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include <algorithm>
#include <random>

#include "sched/holding.h"
#include "sched/outrider_policy.h"
#include "sched/policies.h"
#include "sched/readme_greedy.h"
#include "support/below.h"
#include "support/expert_bytes.h"

namespace outrider::sched {
namespace {

struct Case {
  HoldingCase of;
  StepLimits limits;
  double stay = 0;   // chance that a request keeps its expert
  double pause = 0;  // chance that a request that ran is not ready in the next step
  int64_t fixed_bytes = 0;
  uint64_t seed = 0;
};

// R requests that never end. Expert e is drawn half as often as expert e - 1.
class ClosedLoop {
 public:
  explicit ClosedLoop(const Case& c) : c_(c), random_(c.seed), bytes_(OverlappingBytes(c.of.experts, 0.6, c.seed, 16)) {
    for (int64_t i = 0; i < c.of.running; ++i) requests_.push_back({DrawExpert(), 0, 0});
  }

  // The most steps in a row that passed over a ready item.
  int64_t PassedOverMax(Policy policy, int64_t steps) {
    int64_t most = 0;
    for (int64_t step = 0; step < steps; ++step) {
      Snapshot snapshot;
      std::vector<ReadyItem> items = ItemsAt(step);
      snapshot.step = step;
      snapshot.items = items;
      snapshot.limits = c_.limits;
      snapshot.experts = c_.of.experts;
      snapshot.ffn_bytes = bytes_;
      snapshot.fixed_bytes = c_.fixed_bytes;
      const StepPlan plan = policy(snapshot);
      for (const ReadyItem& item : items) ++requests_[item.request.value].passed_over;
      for (const Slice& slice : plan.slices) Serve(requests_[slice.request.value], step);
      for (const Request& request : requests_) most = std::max(most, request.passed_over);
    }
    return most;
  }

 private:
  struct Request {
    uint8_t expert;
    int64_t ready_since;
    int64_t passed_over;
  };

  bool Draw(double chance) { return static_cast<double>(random_() >> 11) * 0x1p-53 < chance; }

  uint8_t DrawExpert() {
    uint8_t expert = 0;
    while (expert + 1 < c_.of.experts && Draw(0.5)) ++expert;
    return expert;
  }

  std::vector<ReadyItem> ItemsAt(int64_t step) const {
    std::vector<ReadyItem> items;
    for (size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i].ready_since > step) continue;
      ReadyItem item;
      item.request = RequestId{i};
      item.experts = {&requests_[i].expert, 1};
      item.ready_since = requests_[i].ready_since;
      items.push_back(item);
    }
    return items;
  }

  void Serve(Request& request, int64_t step) {
    request.passed_over = 0;
    request.ready_since = step + 1;
    while (Draw(c_.pause)) ++request.ready_since;
    if (!Draw(c_.stay)) request.expert = DrawExpert();
  }

  const Case& c_;
  std::mt19937_64 random_;
  std::vector<int64_t> bytes_;
  std::vector<Request> requests_;
};

struct Sizes {
  uint32_t experts, running, decode_tokens, age;  // at most
};

template <class Draw>
Case AnyCase(Draw below, Sizes max) {
  Case c;
  c.of.experts = 1 + below(max.experts);
  c.of.distinct_experts = 1 + below(static_cast<uint32_t>(c.of.experts));
  c.of.running = 1 + below(max.running);
  c.of.decode_tokens = 1 + below(max.decode_tokens);
  c.limits.decode_tokens = c.of.decode_tokens;
  c.limits.distinct_experts = c.of.distinct_experts;
  c.limits.age_max = 1 + below(max.age);
  c.limits.hold_gain_min = 1 + 0.5 * below(2);
  c.stay = 0.25 * below(4);
  c.pause = 0.3 * below(3);
  c.fixed_bytes = 1000 * below(20);
  c.seed = below(1'000'000);
  return c;
}

RC_GTEST_PROP(DelayBoundProperty, IsNeverExceeded, ()) {
  const Case c = AnyCase(Below, {12, 24, 8, 6});
  RC_ASSERT(ClosedLoop(c).PassedOverMax(PlanOutrider, 150) <= DelayBound(c.limits.age_max, c.of));
}

// The bound says something: small cases come within one step of it, items do wait longer than W, and the same loads
// starve items under queues without ageing.
TEST(DelayBound, IsNearlyAttainedAndBrokenByGreedyQueues) {
  std::mt19937_64 random(7);
  const auto below = [&](uint32_t count) { return static_cast<uint32_t>(random() % count); };
  int nearly_attained = 0, beyond_age = 0, broken_by_greedy = 0;
  for (int i = 0; i < 300; ++i) {
    const Case c = AnyCase(below, {4, 6, 4, 2});
    const int64_t bound = DelayBound(c.limits.age_max, c.of);
    const int64_t waited = ClosedLoop(c).PassedOverMax(PlanOutrider, 150);
    EXPECT_LE(waited, bound);
    nearly_attained += waited >= bound - 1 ? 1 : 0;
    beyond_age += waited > c.limits.age_max ? 1 : 0;
    broken_by_greedy += ClosedLoop(c).PassedOverMax(PlanReadmeGreedy, 150) > bound ? 1 : 0;
  }
  EXPECT_GT(nearly_attained, 50);
  EXPECT_GT(beyond_age, 50);
  EXPECT_GT(broken_by_greedy, 50);
}

// A prompt waits for decode items only while they are more than a step takes, and never beyond its age.
RC_GTEST_PROP(DelayBoundProperty, PromptsAreHeldForDecodeItemsNoLongerThanTheyMay, ()) {
  const auto experts = static_cast<int64_t>(1 + Below(8));
  const std::vector<int64_t> bytes = OverlappingBytes(experts, 0.5, Below(1000), 16);
  std::vector<std::vector<uint8_t>> kept(1 + Below(20));
  std::vector<ReadyItem> items(kept.size());
  Snapshot snapshot;
  snapshot.step = 20;
  snapshot.experts = experts;
  snapshot.ffn_bytes = bytes;
  snapshot.bytes_per_s = 1'000;
  snapshot.token_s = Below(3);
  snapshot.limits = {.decode_tokens = 1 + Below(6), .prefill_tokens = 1 + Below(6), .age_max = Below(4)};
  snapshot.limits.prompt_hold_max = Below(9);
  int64_t decode = 0, oldest = -1;
  for (size_t i = 0; i < items.size(); ++i) {
    items[i].request = RequestId{i};
    items[i].lane = Below(2) == 0 ? Lane::kPrefill : Lane::kDecode;
    items[i].tokens = items[i].lane == Lane::kPrefill ? 1 + Below(5) : 1;
    for (int64_t t = 0; t < items[i].tokens; ++t)
      kept[i].push_back(static_cast<uint8_t>(Below(static_cast<uint32_t>(experts))));
    items[i].experts = kept[i];
    items[i].ready_since = snapshot.step - Below(12);
    if (items[i].lane == Lane::kDecode) ++decode;
    if (items[i].lane == Lane::kPrefill) oldest = std::max(oldest, snapshot.step - items[i].ready_since);
  }
  snapshot.items = items;
  const StepPlan plan = PlanOutrider(snapshot);
  const bool runs = std::ranges::any_of(plan.slices, [](const Slice& s) { return s.lane == Lane::kPrefill; });
  const bool may_wait = decode > snapshot.limits.decode_tokens && oldest < snapshot.limits.prompt_hold_max;
  RC_ASSERT(oldest < 0 || runs || may_wait);
}

// Prompts in chunks: the bound of their lane is W_p + R_p - 1, whatever the limit on bytes and the decode lane.
RC_GTEST_PROP(DelayBoundProperty, HoldsForPrompts, ()) {
  const auto experts = static_cast<int64_t>(1 + Below(8));
  const std::vector<int64_t> bytes = OverlappingBytes(experts, 0.5, Below(1000), 16);
  std::mt19937_64 random(Below(1'000'000));
  const auto any_expert = [&] { return static_cast<uint8_t>(random() % static_cast<uint64_t>(experts)); };
  const size_t prompts = 1 + Below(6), running = Below(8);
  Snapshot snapshot;
  snapshot.experts = experts;
  snapshot.ffn_bytes = bytes;
  snapshot.limits = {.decode_tokens = 4, .prefill_tokens = 1 + Below(6), .distinct_experts = 2, .age_max = 2};
  snapshot.limits.prefill_age_max = 1 + Below(5);
  snapshot.limits.ffn_bytes_max = 1000 * Below(16);
  snapshot.limits.prompt_hold_max = Below(9);  // changes nothing: prompts that are overdue are not held
  const int64_t bound = snapshot.limits.prefill_age_max + static_cast<int64_t>(prompts) - 1;
  std::vector<std::vector<uint8_t>> left(prompts + running);
  std::vector<int64_t> ready_since(prompts + running, 0);
  for (snapshot.step = 0; snapshot.step < 60; ++snapshot.step) {
    std::vector<ReadyItem> items(left.size());
    for (size_t i = 0; i < left.size(); ++i) {
      const size_t tokens = i < prompts ? 9 : 1;
      while (left[i].size() < tokens) left[i].push_back(any_expert());
      items[i].request = RequestId{i};
      items[i].lane = i < prompts ? Lane::kPrefill : Lane::kDecode;
      items[i].experts = left[i];
      items[i].tokens = static_cast<int64_t>(tokens);
      items[i].ready_since = ready_since[i];
      if (i < prompts) RC_ASSERT(snapshot.step - ready_since[i] <= bound);
    }
    snapshot.items = items;
    for (const Slice& slice : PlanOutrider(snapshot).slices) {
      std::vector<uint8_t>& tokens = left[slice.request.value];
      tokens.erase(tokens.begin(), tokens.begin() + slice.tokens);
      ready_since[slice.request.value] = snapshot.step + 1;
    }
  }
}

}  // namespace
}  // namespace outrider::sched
