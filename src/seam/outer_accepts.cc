// Whether a recorded step is one that a plan knows already: the same course again, after a divergence for another
// reason. What MatchEvent and BindFeed ask of a running step is asked of the recording here. The answer may be no where
// it could be yes, never the other way round: the step would be left without a plan.

#include <algorithm>

#include "seam/outer_plan.h"

namespace outrider::seam {
namespace {

using Code = Arg::Code;

bool AcceptsArg(const Arg& known, const Arg& seen) {
  if (known.code == Code::kLate) return FitsLate(known, seen);
  if (known.code != Code::kList) return SameArg(known, seen);
  return seen.code == Code::kList && known.optional_list == seen.optional_list &&
         std::equal(known.list.begin(), known.list.end(), seen.list.begin(), seen.list.end(), AcceptsArg);
}

bool AcceptsEvent(const OuterEvent& known, const OuterEvent& seen) {
  return known.info == seen.info && known.backward == seen.backward && known.env == seen.env &&
         known.leaves == seen.leaves && known.leaf_values == seen.leaf_values && known.first_op == seen.first_op &&
         known.end_op == seen.end_op &&
         std::equal(known.args.begin(), known.args.end(), seen.args.begin(), seen.args.end(), AcceptsArg) &&
         std::equal(known.leaf_grads.begin(), known.leaf_grads.end(), seen.leaf_grads.begin(), seen.leaf_grads.end(),
                    AcceptsArg);
}

bool AcceptsValue(const OuterValue& known, const OuterValue& seen) {
  return known.geometry == seen.geometry && known.requires_grad == seen.requires_grad &&
         known.is_leaf == seen.is_leaf && known.slot == seen.slot && known.consumed_by == seen.consumed_by;
}

bool AcceptsExternal(const External& known, const External& seen) {
  if (!(known.geometry == seen.geometry) || known.requires_grad != seen.requires_grad ||
      known.snapshot != seen.snapshot)
    return false;
  if (known.persistent) return known.identity == seen.identity && known.storage == seen.storage;
  return known.snapshot || known.storage_nbytes <= seen.storage_nbytes;
}

// Inputs share their storages as in the plan, and none lies in the plan's state.
bool SameSharing(const OuterPlan& plan, const OuterTrace& trace) {
  for (int i : plan.feeds) {
    for (size_t j = 0; j < plan.externals.size(); ++j) {
      if (static_cast<size_t>(i) == j || plan.externals[i].snapshot || plan.externals[j].snapshot) continue;
      const bool shared = trace.externals[i].storage == trace.externals[j].storage;
      const bool wanted = !plan.externals[j].persistent && plan.externals[i].slot == plan.externals[j].slot;
      if (shared != wanted) return false;
    }
  }
  return true;
}

}  // namespace

bool OuterPlan::Accepts(const OuterTrace& trace) const {
  return ops.size() == trace.ops.size() &&
         std::equal(events.begin(), events.end(), trace.events.begin(), trace.events.end(), AcceptsEvent) &&
         std::equal(values.begin(), values.end(), trace.values.begin(), trace.values.end(), AcceptsValue) &&
         std::equal(externals.begin(), externals.end(), trace.externals.begin(), trace.externals.end(),
                    AcceptsExternal) &&
         SameSharing(*this, trace);
}

}  // namespace outrider::seam
