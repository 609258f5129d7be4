#include "seam/outer_plan.h"

#include <algorithm>

#include "plan/early_cuts.h"
#include "plan/peak_bytes.h"
#include "seam/lazy_impl.h"

namespace outrider::seam {
namespace {

// What early parts may cost: a share of the memory of a step without them, or so many bytes.
constexpr double kGraphCutsShareMax = 0.15;
constexpr double kGraphCutsBytesMax = 128e6;
// Of the work before the first backward pass: how much goes ahead where a quarter of it is too much.
constexpr double kHeadShares[] = {1.0 / 8, 1.0 / 16, 1.0 / 32};

using Code = Arg::Code;

bool IsScalar(const Arg& arg) { return arg.code == Code::kConstant || arg.code == Code::kNumber; }

bool IsLateCandidate(const c10::IValue& value) {
  if (value.isDouble() || value.isTensor()) return true;  // the only constant tensors are numbers
  if (!value.isList()) return false;
  const auto list = value.toListRef();
  return !list.empty() && std::all_of(list.begin(), list.end(), [](const auto& element) { return element.isDouble(); });
}

bool SameScalar(const c10::IValue& a, const c10::IValue& b) {
  if (a.isTensor() && b.isTensor()) return SameNumber(a.toTensor(), b.toTensor());
  return StructurallyEqual(a, b);
}

bool SameScalarType(const c10::IValue& a, const c10::IValue& b) {
  if (a.isTensor() != b.isTensor() || a.isList() != b.isList()) return false;
  if (a.isList()) return a.toListRef().size() == b.toListRef().size();
  if (!a.isTensor()) return true;
  const auto& x = a.toTensor();
  const auto& y = b.toTensor();
  return x.scalar_type() == y.scalar_type() && x.unsafeGetTensorImpl()->is_wrapped_number() == y.unsafeGetTensorImpl()->is_wrapped_number();
}

// A scalar of a host event that changed between the traces.
struct LateScalar {
  int event = -1, arg = -1, element = -1;
  c10::IValue older, newer;
};

// State of the program: the same object over the same storage in both traces.
bool Persists(const External& before, const External& now) {
  return now.identity == before.identity && now.storage == before.storage && !now.tensor.expired() && !now.snapshot;
}

class Comparison {
 public:
  Comparison(const OuterTrace& older, OuterTrace& newer) : a_(older), b_(newer) {}

  // Empty, or the first difference. On success the changing scalars of `newer` have become late-bound; otherwise it is as
  // it was.
  std::string Run() {
    if (std::string why = Sizes(); !why.empty()) return why;
    if (std::string why = Events(); !why.empty()) return why;
    if (std::string why = Tables(); !why.empty()) return why;
    if (std::string why = DeviceOps(); !why.empty()) return why;
    if (std::string why = Parameters(); !why.empty()) return why;
    for (auto [arg, id] : marks_) {
      arg->code = Code::kLate;
      arg->id = id;
    }
    return "";
  }
  const std::vector<LateScalar>& Late() const { return late_; }
  bool ViewMoves() const { return view_moves_; }

 private:
  std::string Sizes() const {
    auto differs = [](const char* what, size_t x, size_t y) {
      return x == y ? std::string() : std::string(what) + " " + std::to_string(x) + " against " + std::to_string(y) + "; ";
    };
    std::string why = differs("events", a_.events.size(), b_.events.size()) + differs("device ops", a_.ops.size(), b_.ops.size()) +
                      differs("values", a_.values.size(), b_.values.size()) + differs("storages", a_.slots.size(), b_.slots.size()) +
                      differs("views", a_.variables.size(), b_.variables.size()) +
                      differs("inputs", a_.externals.size(), b_.externals.size());
    return why;
  }

  static std::string Where(const OuterEvent& event, size_t index) {
    return "event " + std::to_string(index) + " (" + (event.backward ? "backward" : event.info->name) + ")";
  }

  std::string Events() {
    for (size_t i = 0; i < b_.events.size(); ++i) {
      const OuterEvent& a = a_.events[i];
      OuterEvent& b = b_.events[i];
      if (a.info != b.info || a.backward != b.backward) return Where(b, i) + ": another operator";
      if (!(a.env == b.env)) return Where(b, i) + ": another environment";
      if (a.args.size() != b.args.size() || a.leaves != b.leaves || a.leaf_values != b.leaf_values) return Where(b, i) + ": another pattern";
      if (a.end_op - a.first_op != b.end_op - b.first_op || a.first_op != b.first_op) return Where(b, i) + ": other device ops";
      for (size_t k = 0; k < b.args.size(); ++k) {
        if (AgreesOrBecomesLate(a.args[k], b.args[k], i, k)) continue;
        view_moves_ = !b.backward && b.info->view && b.args[0].code == Code::kExternal && !b_.externals[b.args[0].id].requires_grad;
        return Where(b, i) + ": argument " + std::to_string(k) + " differs";
      }
    }
    return "";
  }

  bool AgreesOrBecomesLate(const Arg& a, Arg& b, size_t event, size_t arg) {
    if (SameArg(a, b)) return true;
    if (a.code != Code::kList || b.code != Code::kList || a.list.size() != b.list.size()) return BecomesLate(a, b, event, arg, -1);
    for (size_t i = 0; i < b.list.size(); ++i) {
      if (!SameArg(a.list[i], b.list[i]) && !BecomesLate(a.list[i], b.list[i], event, arg, static_cast<int>(i))) return false;
    }
    return true;
  }

  bool BecomesLate(const Arg& a, Arg& b, size_t event, size_t arg, int element) {
    if (!IsScalar(a) || !IsScalar(b) || !IsLateCandidate(a.constant) || !IsLateCandidate(b.constant)) return false;
    if (!SameScalarType(a.constant, b.constant)) return false;
    marks_.emplace_back(&b, static_cast<int>(late_.size()));
    late_.push_back({static_cast<int>(event), static_cast<int>(arg), element, a.constant, b.constant});
    return true;
  }

  std::string Tables() const {
    for (size_t i = 0; i < b_.variables.size(); ++i) {
      if (a_.variables[i].slot != b_.variables[i].slot || !(a_.variables[i].geometry == b_.variables[i].geometry)) {
        return "shapes differ: " + a_.variables[i].geometry.Text() + " against " + b_.variables[i].geometry.Text();
      }
    }
    for (size_t i = 0; i < b_.values.size(); ++i) {
      const auto& a = a_.values[i];
      const auto& b = b_.values[i];
      if (!(a.geometry == b.geometry)) return "a value differs: " + a.geometry.Text() + " against " + b.geometry.Text();
      const char* field = a.requires_grad != b.requires_grad || a.is_leaf != b.is_leaf ? "requires_grad"
                          : a.slot != b.slot ? "storage" : a.root != b.root ? "backward root" : a.consumed_by != b.consumed_by ? "history"
                          : a.version != b.version || !(a.counter == b.counter) ? "version" : !(a.view == b.view) ? "view" : nullptr;
      if (field != nullptr) return "a value differs: " + a.geometry.Text() + ", " + field;
    }
    for (size_t i = 0; i < b_.externals.size(); ++i) {
      const auto& a = a_.externals[i];
      const auto& b = b_.externals[i];
      if (!(a.geometry == b.geometry) || a.requires_grad != b.requires_grad || a.snapshot != b.snapshot) {
        return "an input differs: " + a.geometry.Text() + " against " + b.geometry.Text();
      }
    }
    return "";
  }

  // Steps that differ in nothing but the parameters they use (one of several equal modules) are paths of their own.
  std::string Parameters() const {
    for (size_t i = 0; i < b_.externals.size(); ++i) {
      if (b_.externals[i].requires_grad && !Persists(a_.externals[i], b_.externals[i])) {
        return "INNER_HISTORY: an input that requires grad is another one in each recording";
      }
    }
    return "";
  }

  std::string DeviceOps() {
    for (size_t i = 0; i < b_.ops.size(); ++i) {
      const DeviceOp& a = a_.ops[i];
      DeviceOp& b = b_.ops[i];
      if (a.info != b.info || a.event != b.event || !(a.env == b.env) || a.host_draw != b.host_draw || a.args.size() != b.args.size() || a.writes != b.writes) {
        return "device op " + std::to_string(i) + " (" + b.info->name + ") differs";
      }
      for (size_t k = 0; k < b.args.size(); ++k) {
        if (!AgreesOrFollows(a.args[k], b.args[k], b.event, static_cast<int>(k))) {
          return "device op " + std::to_string(i) + " (" + b.info->name + "): argument " + std::to_string(k) +
                 " changes and equals no changing scalar of its event";
        }
      }
    }
    return "";
  }

  bool AgreesOrFollows(const Arg& a, Arg& b, int event, int arg) {
    if (SameArg(a, b)) return true;
    if (a.code != Code::kList || b.code != Code::kList || a.list.size() != b.list.size()) return FollowsHostScalar(a, b, event, arg, -1);
    for (size_t i = 0; i < b.list.size(); ++i) {
      if (!SameArg(a.list[i], b.list[i]) && !FollowsHostScalar(a.list[i], b.list[i], event, arg, static_cast<int>(i))) return false;
    }
    return true;
  }

  // A changing scalar of a device op must be, bit for bit, a changing scalar of its own event: the one in the same place,
  // or the only one that fits. A backward has none of its own and may use those of the events before it.
  bool FollowsHostScalar(const Arg& a, Arg& b, int event, int arg, int element) {
    if (!IsScalar(a) || !IsScalar(b)) return false;
    int found = -1, fitting = 0;
    for (size_t id = 0; id < late_.size(); ++id) {
      const LateScalar& late = late_[id];
      const bool in_reach = late.event == event || (b_.events[event].backward && late.event < event);
      if (!in_reach || !SameScalar(late.older, a.constant) || !SameScalar(late.newer, b.constant)) continue;
      ++fitting;
      if (late.event == event && late.arg == arg && late.element == element) {
        found = static_cast<int>(id);
        fitting = 1;
        break;
      }
      found = static_cast<int>(id);
    }
    if (fitting != 1) return false;
    marks_.emplace_back(&b, found);
    return true;
  }

  bool view_moves_ = false;
  const OuterTrace& a_;
  OuterTrace& b_;
  std::vector<LateScalar> late_;
  std::vector<std::pair<Arg*, int>> marks_;  // arguments that become late-bound
};

void ClassifyExternals(const OuterTrace& older, OuterPlan& plan) {
  for (size_t i = 0; i < plan.externals.size(); ++i) {
    External& external = plan.externals[i];
    external.persistent = Persists(older.externals[i], external);
    if (!external.persistent) plan.feeds.push_back(static_cast<int>(i));
  }
}

std::string FirstUseOf(const OuterPlan& plan, int slot) {
  for (const auto& op : plan.ops) {
    for (const auto& arg : op.args) {
      bool uses = arg.code == Code::kVariable && plan.variables[arg.id].slot == slot;
      for (const auto& element : arg.list) uses |= element.code == Code::kVariable && plan.variables[element.id].slot == slot;
      if (uses) {
        const OuterEvent& event = plan.events[op.event];
        return op.info->name + " in " + (event.backward ? std::string("backward") : event.info->name);
      }
    }
  }
  return "a value";
}

std::string ClassifySlots(OuterPlan& plan) {
  for (size_t s = 0; s < plan.slots.size(); ++s) {
    Slot& slot = plan.slots[s];
    for (const auto& external : plan.externals) {
      if (slot.allocate && external.storage == slot.identity) return "INNER_FOREIGN: an event fills a tensor that the program holds";
    }
    if (!slot.external || slot.snapshot) continue;
    for (size_t i = 0; i < plan.externals.size(); ++i) {
      External& external = plan.externals[i];
      if (external.storage != slot.identity || external.snapshot) continue;
      external.slot = static_cast<int>(s);
      if (external.persistent) slot.persistent = 0;
      else if (slot.feed < 0) slot.feed = static_cast<int>(i);
    }
    if (slot.persistent < 0 && slot.feed < 0) return "INNER_FOREIGN: " + FirstUseOf(plan, static_cast<int>(s)) + " uses a storage that no input of the step shows";
    if (slot.persistent < 0) continue;
    auto storage = slot.storage.lock();
    auto* record = storage ? RecordOf(storage.get()) : nullptr;
    if (record == nullptr) return "INNER_FOREIGN: state of the program has no record";
    slot.feed = -1;
    slot.persistent = static_cast<int>(plan.persistent_records.size());
    plan.persistent_records.push_back(RecordPtr::reclaim_copy(record));
    plan.persistent_slots.push_back(static_cast<int>(s));
    plan.slot_of_persistent[record] = static_cast<int>(s);
  }
  return "";
}

void FindUses(OuterPlan& plan) {
  plan.first_use.assign(plan.slots.size(), -1);
  plan.last_use.assign(plan.slots.size(), -1);
  plan.written.assign(plan.slots.size(), 0);
  plan.variables_of_slot.resize(plan.slots.size());
  plan.externals_of_slot.resize(plan.slots.size());
  for (size_t s = 0; s < plan.slots.size(); ++s) {
    if (plan.slots[s].snapshot) plan.externals_of_slot[s].push_back(plan.slots[s].snapshot_external);
  }
  for (size_t i = 0; i < plan.externals.size(); ++i) {
    const External& external = plan.externals[i];
    if (external.slot >= 0 && !plan.slots[external.slot].snapshot) plan.externals_of_slot[external.slot].push_back(static_cast<int>(i));
  }
  for (size_t v = 0; v < plan.variables.size(); ++v) plan.variables_of_slot[plan.variables[v].slot].push_back(static_cast<int>(v));
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    const int op = static_cast<int>(i);
    VisitSlots(plan, plan.ops[i], [&](int slot) {
      if (plan.first_use[slot] < 0) plan.first_use[slot] = op;
      plan.last_use[slot] = op;
    });
    for (int slot : plan.ops[i].writes) plan.written[slot] = 1;
  }
  for (size_t s = 0; s < plan.slots.size(); ++s) {
    if (plan.last_use[s] >= 0 && plan.slots[s].persistent < 0) plan.ops[plan.last_use[s]].drop_slots.push_back(static_cast<int>(s));
  }
}

void FindHistory(OuterPlan& plan) {
  for (size_t id = 0; id < plan.values.size(); ++id) {
    if (NeedsHistory(plan.values[id])) plan.values_with_history = static_cast<uint32_t>(id) + 1;
    if (plan.values[id].root >= 0) plan.root_values.push_back(static_cast<int>(id));
  }
}

// Parts that are launched early as graphs keep all that they made until the step is over: here those before op `end_op`.
bool EarlyGraphsFit(const OuterPlan& plan, int end_op) {
  std::vector<plan::SlotLife> lives;
  size_t state = 0;
  for (size_t s = 0; s < plan.slots.size(); ++s) {
    if (plan.slots[s].persistent >= 0) state += plan.slots[s].nbytes;
    if (!plan.slots[s].external) lives.push_back({plan.first_use[s], plan.last_use[s], plan.slots[s].nbytes});
  }
  const int ops = static_cast<int>(plan.ops.size());
  const auto whole = static_cast<double>(plan::PeakBytes(lives, ops) + state);
  const double more = static_cast<double>(plan::PeakBytes(lives, ops, end_op) + state) - whole;
  return more <= std::max(kGraphCutsShareMax * whole, kGraphCutsBytesMax);
}

// Where quarters of a step need too much memory: the event behind which the device gets a little of the first forward pass,
// to be busy while the host goes through the rest of it. -1: that is too much as well.
int FittingHeadCut(const OuterPlan& plan, std::span<const int> end_ops) {
  const auto backward = std::find_if(plan.events.begin(), plan.events.end(), [](const auto& event) { return event.backward; });
  const auto before = end_ops.first(static_cast<size_t>(backward - plan.events.begin()));
  std::vector<size_t> bytes(plan.ops.size(), 0);
  for (size_t s = 0; s < plan.slots.size(); ++s) {
    if (!plan.slots[s].external && plan.first_use[s] >= 0) bytes[plan.first_use[s]] += plan.slots[s].nbytes;
  }
  for (const double share : kHeadShares) {
    const int event = plan::FindHeadCut(before, bytes, share);
    if (event >= 0 && EarlyGraphsFit(plan, end_ops[event])) return event;
  }
  return -1;
}

void FindCuts(OuterPlan& plan) {
  std::vector<int> end_ops;
  for (const auto& event : plan.events) {
    if (event.backward) plan.last_backward = static_cast<int>(end_ops.size());
    end_ops.push_back(event.end_op);
  }
  auto [early, graph] = plan::FindStepCuts(end_ops, plan.last_backward);
  plan.early_cuts = std::move(early);
  plan.graph_cuts = std::move(graph);
  if (plan.last_backward < 0 || EarlyGraphsFit(plan, plan.events[plan.last_backward].first_op)) return;
  std::fill_n(plan.graph_cuts.begin(), plan.last_backward + 1, 0);
  if (const int head = FittingHeadCut(plan, end_ops); head >= 0) plan.graph_cuts[head] = 1;
}

}  // namespace

bool FitsLate(const Arg& late, const Arg& seen) {
  return IsScalar(seen) && IsLateCandidate(seen.constant) && SameScalarType(late.constant, seen.constant);
}

PlanResult MakePlan(const OuterTrace& older, OuterTrace&& newer) {
  PlanResult result;
  if (!older.refusal.empty() || !newer.refusal.empty()) {
    result.why_not = newer.refusal.empty() ? older.refusal : newer.refusal;
    return result;
  }
  Comparison comparison(older, newer);
  if (std::string why = comparison.Run(); !why.empty()) {
    result.why_not = why.starts_with("INNER_") ? why : "INNER_UNSTABLE: " + why;
    result.view_moves = comparison.ViewMoves();
    return result;
  }
  auto plan = std::make_shared<OuterPlan>();
  static_cast<OuterTrace&>(*plan) = std::move(newer);
  for (const auto& late : comparison.Late()) plan->late_sources.emplace_back(late.event, late.arg);
  for (size_t i = 0; i < plan->alive.size() && i < older.alive.size(); ++i) plan->alive[i] |= older.alive[i];
  ClassifyExternals(older, *plan);
  result.why_not = ClassifySlots(*plan);
  if (!result.why_not.empty()) return result;
  FindUses(*plan);
  FindHistory(*plan);
  FindCuts(*plan);
  result.plan = std::move(plan);
  return result;
}

const RangeFacts& OuterPlan::Facts(int first_op, int end_op) const {
  auto [it, fresh] = facts_.try_emplace({first_op, end_op});
  RangeFacts& facts = it->second;
  if (!fresh) return facts;
  std::vector<char> seen(slots.size(), 0), written_here(slots.size(), 0);
  for (int i = first_op; i < end_op; ++i) {
    VisitSlots(*this, ops[i], [&](int slot) { seen[slot] = 1; });
    for (int slot : ops[i].writes) seen[slot] = written_here[slot] = 1;
    if (!ops[i].host_draw && !ops[i].info->metadata_only) ++facts.counted_ops;
  }
  for (size_t s = 0; s < slots.size(); ++s) {
    if (!seen[s]) continue;
    const Slot& slot = slots[s];
    if (slot.persistent >= 0) facts.persistent.push_back(persistent_records[slot.persistent].get());
    else facts.slots.push_back(static_cast<int>(s));
    if (written_here[s] && slot.external && !slot.snapshot) facts.written_inputs.push_back(static_cast<int>(s));
  }
  return facts;
}

bool OuterPlan::Expired() const {
  return std::any_of(externals.begin(), externals.end(),
                     [](const External& external) { return external.persistent && external.tensor.expired(); });
}

}  // namespace outrider::seam
