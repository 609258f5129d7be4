#include "plan/late_bound.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/check.h"

namespace outrider::plan {
namespace {

bool SameShape(const ScalarRecording& a, const ScalarRecording& b) {
  const auto same_count = [](const Scalars& x, const Scalars& y) { return x.size() == y.size(); };
  const auto same_op = [](const ScalarOp& x, const ScalarOp& y) {
    return x.event == y.event && x.scalars.size() == y.scalars.size();
  };
  return std::equal(a.events.begin(), a.events.end(), b.events.begin(), b.events.end(), same_count) &&
         std::equal(a.ops.begin(), a.ops.end(), b.ops.begin(), b.ops.end(), same_op);
}

class Finder {
 public:
  explicit Finder(std::span<const ScalarRecording> recordings) : recordings_(recordings), first_(recordings.front()) {}

  ScalarPlan Run() {
    for (uint32_t op = 0; op < first_.ops.size(); ++op) {
      for (uint32_t scalar = 0; scalar < first_.ops[op].scalars.size(); ++scalar) Bind(op, scalar);
    }
    ReportUnused();
    return std::move(plan_);
  }

 private:
  bool EventScalarChanges(uint32_t event, uint32_t scalar) const {
    return std::any_of(recordings_.begin(), recordings_.end(), [&](const ScalarRecording& other) {
      return other.events[event][scalar] != first_.events[event][scalar];
    });
  }

  bool OpScalarChanges(uint32_t op, uint32_t scalar) const {
    return std::any_of(recordings_.begin(), recordings_.end(), [&](const ScalarRecording& other) {
      return other.ops[op].scalars[scalar] != first_.ops[op].scalars[scalar];
    });
  }

  bool AlwaysEqual(uint32_t op, uint32_t scalar, uint32_t event_scalar) const {
    const uint32_t event = first_.ops[op].event;
    return std::all_of(recordings_.begin(), recordings_.end(), [&](const ScalarRecording& recording) {
      return recording.ops[op].scalars[scalar] == recording.events[event][event_scalar];
    });
  }

  void Bind(uint32_t op, uint32_t scalar) {
    if (!OpScalarChanges(op, scalar)) return;
    const uint32_t event = first_.ops[op].event;
    std::vector<uint32_t> sources;  // each of them changes, because the op's scalar does
    for (uint32_t source = 0; source < first_.events[event].size(); ++source) {
      if (AlwaysEqual(op, scalar, source)) sources.push_back(source);
    }
    // A list argument often repeats one value; there the position tells the sources apart.
    if (std::find(sources.begin(), sources.end(), scalar) != sources.end()) sources = {scalar};
    if (sources.size() == 1) {
      plan_.late_bound.push_back({op, scalar, sources.front()});
      used_.emplace(event, sources.front());
    } else {
      const MismatchReason reason = sources.empty() ? MismatchReason::kNoSource : MismatchReason::kAmbiguous;
      plan_.mismatches.push_back({reason, op, scalar});
    }
  }

  void ReportUnused() {
    for (uint32_t event = 0; event < first_.events.size(); ++event) {
      for (uint32_t scalar = 0; scalar < first_.events[event].size(); ++scalar) {
        if (used_.contains({event, scalar}) || !EventScalarChanges(event, scalar)) continue;
        plan_.mismatches.push_back({MismatchReason::kUnused, event, scalar});
      }
    }
  }

  std::span<const ScalarRecording> recordings_;
  const ScalarRecording& first_;
  std::set<std::pair<uint32_t, uint32_t>> used_;  // event, scalar
  ScalarPlan plan_;
};

}  // namespace

ScalarPlan FindLateBound(std::span<const ScalarRecording> recordings) {
  OUTRIDER_CHECK(recordings.size() >= 2, "needs two recordings to compare, got ", recordings.size());
  for (const ScalarRecording& recording : recordings) {
    if (!SameShape(recordings.front(), recording)) return {{}, {ScalarMismatch{}}};
    for (const ScalarOp& op : recording.ops) {
      OUTRIDER_CHECK(op.event < recording.events.size(), "event ", op.event, " of ", recording.events.size());
    }
  }
  return Finder(recordings).Run();
}

}  // namespace outrider::plan
