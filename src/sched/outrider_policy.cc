#include "sched/outrider_policy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <tuple>
#include <utility>
#include <vector>

#include "sched/expert_choice.h"
#include "sched/holding.h"
#include "sched/item_order.h"
#include "sched/plan_builder.h"
#include "sched/step_cost.h"

namespace outrider::sched {
namespace {

constexpr double kHeldPerAdded = 4;  // time that prompts are held at most, in what they would cost the others
constexpr double kSharedGain = 1.5;  // what waiting for another prompt has to save, in what it costs

class OutriderPlanner {
 public:
  explicit OutriderPlanner(const Snapshot& snapshot)
      : snapshot_(snapshot), limits_(snapshot.limits), plan_(snapshot), decode_(DecodeOrder(snapshot)) {}

  StepPlan Run() && {
    if (limits_.age_max > 0) TakeOverdue();
    if (snapshot_.experts > 0 && limits_.age_max > 0) {
      TakeOf(ChooseExperts(snapshot_, plan_.experts(), ReadyByExpert()));
    } else {
      TakeAllDecode();
    }
    FillOrHoldPrompts();
    if (snapshot_.experts > 0) TakeOf(plan_.experts());
    HoldRest();
    StepPlan plan = std::move(plan_).Finish();
    std::stable_partition(plan.slices.begin(), plan.slices.end(),
                          [](const Slice& slice) { return slice.lane == Lane::kDecode; });
    return plan;
  }

 private:
  const ReadyItem& At(size_t item) const { return snapshot_.items[item]; }

  bool Overdue(size_t item) const {
    const int64_t age_max = At(item).lane == Lane::kDecode ? limits_.age_max : limits_.prefill_age_max;
    return snapshot_.step - At(item).ready_since >= age_max;
  }

  void TakeOverdue() {
    std::vector<size_t> order = ItemsOf(snapshot_, Lane::kDecode);
    SortByAge(snapshot_, order);
    for (const size_t item : order) {
      if (!Overdue(item)) break;
      const auto with = static_cast<ExpertSet>(plan_.experts() | ExpertsOf(At(item), 0, 1));
      if (std::popcount(with) <= DistinctMax(snapshot_)) plan_.Take(item, 1);
    }
  }

  std::array<int64_t, 16> ReadyByExpert() const {
    std::array<int64_t, 16> ready{};
    for (const size_t item : decode_) ++ready[At(item).experts[0]];
    return ready;
  }

  void TakeOf(ExpertSet experts) {
    for (const size_t item : decode_) {
      if (plan_.Taken(item) == 0 && Has(experts, At(item).experts[0])) plan_.Take(item, 1);
    }
  }

  void TakeAllDecode() {
    for (const size_t item : decode_) {
      if (plan_.Taken(item) == 0) plan_.Take(item, 1);
    }
  }

  std::vector<size_t> PromptOrder() const {
    if (limits_.prefill_age_max == 0) return PrefillOrder(snapshot_);
    std::vector<size_t> order = ItemsOf(snapshot_, Lane::kPrefill);
    SortByAge(snapshot_, order);
    const auto fresh = std::find_if(order.begin(), order.end(), [&](size_t item) { return !Overdue(item); });
    std::vector<std::tuple<int64_t, int64_t, size_t>> keys;  // priority, added bytes, order of arrival
    for (auto it = fresh; it != order.end(); ++it) keys.emplace_back(-At(*it).priority, AddedBytes(*it), *it);
    std::sort(keys.begin(), keys.end());
    std::transform(keys.begin(), keys.end(), fresh, [](const auto& key) { return std::get<2>(key); });
    return order;
  }

  // FFN bytes that the item's next chunk adds to what the decode lane reads.
  int64_t AddedBytes(size_t item) const {
    const int64_t tokens = std::min(limits_.prefill_tokens, At(item).tokens);
    const auto with = static_cast<ExpertSet>(plan_.experts() | ExpertsOf(At(item), 0, tokens));
    return FfnBytes(snapshot_, with) - FfnBytes(snapshot_, plan_.experts());
  }

  void FillOrHoldPrompts() {
    PlanBuilder without = plan_;
    FillPrefillLane();
    if (limits_.prompt_hold_max <= 0 || without.Empty()) return;
    const std::vector<size_t> prompts = ItemsOf(snapshot_, Lane::kPrefill);
    const auto most = static_cast<double>(PromptHoldAge(limits_));
    const double age_max = MorePromptsPay(prompts) ? most : std::min(most, CrowdedAge(without));
    const auto urgent = [&](size_t item) {
      return At(item).priority > 0 || static_cast<double>(snapshot_.step - At(item).ready_since) >= age_max;
    };
    if (std::ranges::any_of(prompts, urgent)) return;
    plan_ = std::move(without);
    for (const size_t item : prompts) plan_.Hold(item);
  }

  // Prompts that make the step longer wait, while decode items wait anyway: no longer than a few times what they add.
  double CrowdedAge(const PlanBuilder& without) const {
    if (static_cast<int64_t>(decode_.size()) <= limits_.decode_tokens) return 0;
    const double step_s = Seconds(without), added_s = Seconds(plan_) - step_s;
    return kHeldPerAdded * added_s / step_s;
  }

  // A pass of prompts costs all that write its setup, once for all prompts that share it; those that wait for it pay
  // with their time. So they wait while it is likely to save clearly more than it costs, and no longer, together, than
  // the setup is for the others: the most that waiting in vain may cost is what it may save.
  bool MorePromptsPay(const std::vector<size_t>& prompts) const {
    const PromptPass& pass = snapshot_.prompt_pass;
    const auto cut = [&](size_t item) { return plan_.Taken(item) < At(item).tokens; };
    if (pass.setup_s <= 0 || plan_.Room(Lane::kPrefill) <= 0 || std::ranges::any_of(prompts, cut)) return false;
    const auto texts = static_cast<double>(decode_.size()), waiting = static_cast<double>(prompts.size());
    if (kSharedGain * waiting >= pass.prompts_per_s * pass.setup_s * (texts + waiting)) return false;
    double waited_s = 0;
    for (const size_t item : prompts)
      waited_s += static_cast<double>(snapshot_.step - At(item).ready_since) * pass.step_s;
    return waited_s < pass.setup_s * texts;
  }

  double Seconds(const PlanBuilder& plan) const {
    int64_t tokens = 0;
    for (size_t item = 0; item < snapshot_.items.size(); ++item) tokens += plan.Taken(item);
    return StepSeconds(snapshot_, plan.experts(), tokens);
  }

  void FillPrefillLane() {
    bool first = true;
    for (const size_t item : PromptOrder()) {
      if (plan_.Room(Lane::kPrefill) <= 0) return;
      // The oldest overdue prompt gets at least one token; so does the first of an otherwise empty step.
      const bool certain = first && (Overdue(item) || plan_.Empty());
      const int64_t tokens = FittingTokens(item, certain ? 1 : 0);
      if (tokens > 0) {
        plan_.Take(item, tokens);
      } else {
        plan_.Hold(item);
      }
      first = false;
    }
  }

  // Tokens of the item that keep the step below ffn_bytes_max; the first `certain` of them count in any case.
  int64_t FittingTokens(size_t item, int64_t certain) const {
    const int64_t end = std::min(At(item).tokens, plan_.Room(Lane::kPrefill));
    if (limits_.ffn_bytes_max <= 0 || At(item).experts.empty()) return end;
    ExpertSet experts = plan_.experts();
    for (int64_t i = 0; i < end; ++i) {
      const ExpertSet with = With(experts, At(item).experts[static_cast<size_t>(i)]);
      if (with != experts && i >= certain && FfnBytes(snapshot_, with) > limits_.ffn_bytes_max) return i;
      experts = with;
    }
    return end;
  }

  void HoldRest() {
    if (plan_.Room(Lane::kDecode) <= 0) return;
    for (const size_t item : decode_) {
      if (plan_.Taken(item) == 0) plan_.Hold(item);
    }
  }

  const Snapshot& snapshot_;
  const StepLimits& limits_;
  PlanBuilder plan_;
  std::vector<size_t> decode_;  // in DecodeOrder
};

}  // namespace

StepPlan PlanOutrider(const Snapshot& snapshot) { return OutriderPlanner(snapshot).Run(); }

}  // namespace outrider::sched
