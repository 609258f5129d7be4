// A plan beside another one, and beside a recording.
//
// Whether a recorded step is one that a plan knows already: the same course again, after a divergence for another reason.
// What MatchEvent and BindFeed ask of a running step is asked of the recording here. The answer may be no where it could
// be yes, never the other way round: the step would be left without a plan.

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

// What the program got from the one is what it would have got from the other.
static bool SameResult(const OuterValue& a, const OuterValue& b) {
  return a.geometry == b.geometry && a.keys == b.keys && a.requires_grad == b.requires_grad && a.is_leaf == b.is_leaf && a.slot == b.slot &&
         a.counter == b.counter && a.version == b.version && a.view == b.view;
}

static bool SameExternal(const External& x, const External& y) {
  return x.persistent == y.persistent && x.slot == y.slot && x.geometry == y.geometry && x.requires_grad == y.requires_grad &&
         x.snapshot == y.snapshot && (!x.persistent || x.identity == y.identity);
}

// Externals with equal numbers may be different tensors of the program, also those in a list.
static bool SameTensors(const OuterPlan& plan, const OuterPlan& other, const Arg& a, const Arg& b) {
  if (a.code == Code::kExternal && !SameExternal(plan.externals[a.id], other.externals[b.id])) return false;
  for (size_t k = 0; k < a.list.size(); ++k) {
    if (!SameTensors(plan, other, a.list[k], b.list[k])) return false;
  }
  return true;
}

static bool SameArguments(const OuterPlan& plan, const OuterPlan& other, const std::vector<Arg>& a, const std::vector<Arg>& b) {
  if (a.size() != b.size()) return false;
  for (size_t k = 0; k < a.size(); ++k) {
    if (!SameArg(a[k], b[k]) || !SameTensors(plan, other, a[k], b[k])) return false;
  }
  return true;
}

static bool SameLeaves(const OuterPlan& plan, const OuterPlan& other, const OuterEvent& a, const OuterEvent& b) {
  if (a.leaves != b.leaves || a.leaf_values != b.leaf_values || !SameArguments(plan, other, a.leaf_grads, b.leaf_grads)) return false;
  return std::all_of(a.leaves.begin(), a.leaves.end(),
                     [&](int id) { return SameExternal(plan.externals[id], other.externals[id]); });
}

static bool SameOp(const DeviceOp& a, const DeviceOp& b) {
  bool same = a.info == b.info && a.args.size() == b.args.size() && a.writes == b.writes && a.outputs.size() == b.outputs.size();
  for (size_t k = 0; same && k < a.args.size(); ++k) same = SameArg(a.args[k], b.args[k]);
  for (size_t k = 0; same && k < a.outputs.size(); ++k) same = SameArg(a.outputs[k], b.outputs[k]);
  return same;
}

static bool SameOutputs(const OuterPlan& plan, const OuterPlan& other, const OuterEvent& a, const OuterEvent& b) {
  for (size_t k = 0; k < a.outputs.size(); ++k) {
    const auto& x = a.outputs[k];
    const auto& y = b.outputs[k];
    if (x.kind != y.kind || x.value != y.value || x.values != y.values || x.arg != y.arg || x.element != y.element) return false;
    if (x.value >= 0 && !SameResult(plan.values[x.value], other.values[x.value])) return false;
    for (int value : x.values) {
      if (!SameResult(plan.values[value], other.values[value])) return false;
    }
  }
  return true;
}

size_t OuterPlan::SharedPrefix(const OuterPlan& other) const {
  std::erase_if(shared_, [](const auto& entry) { return entry.first.expired(); });
  const auto known = std::find_if(shared_.begin(), shared_.end(), [&](const auto& entry) { return entry.first.lock().get() == &other; });
  if (known != shared_.end()) return known->second;
  const size_t shared = CompareEvents(other);
  shared_.emplace_back(other.weak_from_this(), shared);
  return shared;
}

size_t OuterPlan::CompareEvents(const OuterPlan& other) const {
  const size_t limit = std::min(events.size(), other.events.size());
  for (size_t i = 0; i < limit; ++i) {
    const OuterEvent& a = events[i];
    const OuterEvent& b = other.events[i];
    bool same = a.info == b.info && a.backward == b.backward && a.env == b.env && a.first_op == b.first_op &&
                a.end_op == b.end_op && a.snapshots.size() == b.snapshots.size() && a.outputs.size() == b.outputs.size() &&
                SameArguments(*this, other, a.args, b.args) && SameLeaves(*this, other, a, b);
    for (int op = a.first_op; same && op < a.end_op; ++op) same = SameOp(ops[op], other.ops[op]);
    if (!same || !SameOutputs(*this, other, a, b)) return i;
  }
  return limit;
}

}  // namespace outrider::seam
