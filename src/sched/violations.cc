#include "sched/violations.h"

#include <algorithm>
#include <map>

#include "sched/plan_builder.h"

namespace outrider::sched {
namespace {

std::string Name(RequestId request) { return "request " + std::to_string(request.value); }

class Findings {
 public:
  template <class... Parts>
  void Expect(bool holds, const Parts&... parts) {
    if (holds) return;
    std::string text;
    ((text += parts), ...);
    found_.push_back(std::move(text));
  }
  std::vector<std::string> Take() && { return std::move(found_); }

 private:
  std::vector<std::string> found_;
};

class PlanCheck {
 public:
  PlanCheck(const Snapshot& snapshot, const StepPlan& plan) : snapshot_(snapshot), plan_(plan) {
    for (const ReadyItem& item : snapshot.items) items_.emplace(item.request, &item);
  }

  std::vector<std::string> Run() && {
    CheckSlices();
    CheckHeld();
    CheckOrder();
    CheckProgress();
    return std::move(findings_).Take();
  }

 private:
  int64_t Budget(Lane lane) const {
    return lane == Lane::kDecode ? snapshot_.limits.decode_tokens : snapshot_.limits.prefill_tokens;
  }

  void CheckSlices() {
    ExpertSet experts = 0;
    for (const Slice& slice : plan_.slices) {
      const std::string name = Name(slice.request);
      const auto known = items_.find(slice.request);
      findings_.Expect(known != items_.end(), name, " runs, but is not ready");
      findings_.Expect(taken_.emplace(slice.request, slice.tokens).second, name, " runs twice");
      if (known == items_.end()) continue;
      const ReadyItem& item = *known->second;
      findings_.Expect(slice.lane == item.lane, name, " runs in the wrong lane");
      findings_.Expect(slice.tokens >= 1 && slice.tokens <= item.tokens, name, " runs ", std::to_string(slice.tokens),
                       " tokens of ", std::to_string(item.tokens));
      spent_[slice.lane] += slice.tokens;
      experts = static_cast<ExpertSet>(experts | ExpertsOf(item, 0, std::min(item.tokens, slice.tokens)));
    }
    findings_.Expect(plan_.experts == experts, "the plan names experts ", std::to_string(plan_.experts),
                     ", its slices have ", std::to_string(experts));
    for (const auto& [lane, tokens] : spent_) {
      findings_.Expect(tokens <= Budget(lane), lane == Lane::kDecode ? "decode" : "prefill",
                       " lane: ", std::to_string(tokens), " tokens, the budget is ", std::to_string(Budget(lane)));
    }
  }

  void CheckHeld() {
    std::vector<RequestId> held = plan_.held;
    std::sort(held.begin(), held.end());
    findings_.Expect(std::adjacent_find(held.begin(), held.end()) == held.end(), "a request is held twice");
    for (const RequestId request : held) {
      const auto known = items_.find(request);
      findings_.Expect(known != items_.end(), Name(request), " is held, but not ready");
      findings_.Expect(!taken_.contains(request), Name(request), " is held and runs");
      if (known == items_.end()) continue;
      const Lane lane = known->second->lane;
      findings_.Expect(lane == Lane::kPrefill || spent_[lane] < Budget(lane), Name(request),
                       " is held, though its lane is full");
    }
  }

  void CheckOrder() {
    for (const ReadyItem& x : snapshot_.items) {
      if (x.lane != Lane::kDecode || taken_.contains(x.request)) continue;
      for (const ReadyItem& y : snapshot_.items) {
        const bool alike = y.lane == Lane::kDecode && (x.experts.empty() || x.experts[0] == y.experts[0]);
        if (!alike || !taken_.contains(y.request) || x.priority < y.priority) continue;
        const bool older = std::pair(x.ready_since, x.request) < std::pair(y.ready_since, y.request);
        findings_.Expect(!older, Name(y.request), " overtakes ", Name(x.request), " of its expert");
      }
    }
  }

  void CheckProgress() {
    const bool can = std::any_of(snapshot_.items.begin(), snapshot_.items.end(),
                                 [&](const ReadyItem& item) { return Budget(item.lane) > 0; });
    findings_.Expect(!can || !plan_.slices.empty(), "nothing runs, though items are ready");
  }

  const Snapshot& snapshot_;
  const StepPlan& plan_;
  Findings findings_;
  std::map<RequestId, const ReadyItem*> items_;
  std::map<RequestId, int64_t> taken_;
  std::map<Lane, int64_t> spent_;
};

void CheckItem(const Snapshot& snapshot, const ReadyItem& item, Findings& findings) {
  const std::string name = Name(item.request);
  findings.Expect(item.request.IsValid(), "an item without a request");
  findings.Expect(item.tokens >= 1, name, " has ", std::to_string(item.tokens), " tokens");
  findings.Expect(item.lane == Lane::kPrefill || item.tokens == 1, name, " decodes more than one token");
  const auto experts = static_cast<int64_t>(item.experts.size());
  findings.Expect(experts == (snapshot.experts == 0 ? 0 : item.tokens), name, " has ", std::to_string(experts),
                  " experts of ", std::to_string(item.tokens), " tokens");
  for (const uint8_t expert : item.experts) {
    findings.Expect(expert < snapshot.experts, name, " has expert ", std::to_string(expert));
  }
  findings.Expect(item.ready_since <= snapshot.step, name, " is ready in a later step");
  findings.Expect(item.priority == 0 || item.priority == 1, name, " has priority ", std::to_string(item.priority));
}

}  // namespace

std::vector<std::string> SnapshotViolations(const Snapshot& snapshot) {
  Findings findings;
  constexpr int64_t kExpertsMax = 8 * sizeof(ExpertSet);
  const int64_t experts = snapshot.experts;
  findings.Expect(experts >= 0 && experts <= kExpertsMax, std::to_string(experts), " experts");
  if (experts < 0 || experts > kExpertsMax) return std::move(findings).Take();
  findings.Expect(snapshot.ffn_bytes.size() == size_t{1} << experts, "FFN bytes of ",
                  std::to_string(snapshot.ffn_bytes.size()), " sets of ", std::to_string(experts), " experts");
  const StepLimits& limits = snapshot.limits;
  for (const int64_t limit : {limits.decode_tokens, limits.prefill_tokens, limits.distinct_experts, limits.age_max,
                              limits.prefill_age_max, limits.prompt_hold_max, limits.ffn_bytes_max}) {
    findings.Expect(limit >= 0, "a limit of ", std::to_string(limit));
  }
  findings.Expect(limits.hold_gain_min >= 1, "a least gain of holding of ", std::to_string(limits.hold_gain_min));
  for (size_t i = 0; i < snapshot.items.size(); ++i) {
    CheckItem(snapshot, snapshot.items[i], findings);
    findings.Expect(i == 0 || snapshot.items[i - 1].request < snapshot.items[i].request,
                    Name(snapshot.items[i].request), " is out of order");
  }
  return std::move(findings).Take();
}

std::vector<std::string> Violations(const Snapshot& snapshot, const StepPlan& plan) {
  std::vector<std::string> found = SnapshotViolations(snapshot);
  if (!found.empty()) return found;
  return PlanCheck(snapshot, plan).Run();
}

}  // namespace outrider::sched
