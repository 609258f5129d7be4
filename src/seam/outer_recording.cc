// Steps that are recorded: what is written down (OuterLane::RecordEvent), and at the end what becomes of the recording
// (OuterLane::FinishRecording). A plan that accepts it is the newest plan from then on; with another recording that agrees
// it makes a new plan; else it waits for one.
//
// Before that, the two comparisons that the lane makes between paths, both of them on paper only:
// - OuterPlan::Accepts: a recording beside a plan. What MatchEvent and BindFeed ask of a running step is asked of the
//   recording. The answer may be no where it could be yes, never the other way round: the step would be left without a plan.
// - OuterPlan::SharedPrefix: a plan beside another one, which may take over where both are the same.

#include <algorithm>
#include <optional>
#include <tuple>

#include "seam/outer_lane.h"
#include "seam/outer_plan.h"
#include "seam/plan_graphs.h"

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

namespace {

constexpr size_t kPlansMax = 16;        // per program
constexpr size_t kRecordingsMax = 6;    // waiting for a second, agreeing one
constexpr size_t kWitnessesMax = 8;     // paths
constexpr int kFruitlessMax = 12;       // recordings in a row before recording pauses

// How near two recordings are to the same path; greater is nearer.
using Nearness = std::tuple<size_t, bool, size_t>;

Nearness NearnessOf(const OuterTrace& a, const OuterTrace& b) {
  const size_t limit = std::min(a.events.size(), b.events.size());
  const auto same_operator = [&](size_t i) { return a.events[i].info == b.events[i].info && a.events[i].backward == b.events[i].backward; };
  const auto same_arguments = [&](size_t i) {
    return std::equal(a.events[i].args.begin(), a.events[i].args.end(), b.events[i].args.begin(), b.events[i].args.end(), SameArg);
  };
  size_t operators = 0, equal = 0;
  while (operators < limit && same_operator(operators)) ++operators;
  while (equal < operators && same_arguments(equal)) ++equal;
  return {operators, a.events.size() == b.events.size(), equal};
}

// As far as can be seen without comparing everything.
bool SamePath(const OuterTrace& a, const OuterTrace& b) {
  const size_t events = a.events.size();
  return a.ops.size() == b.ops.size() && a.values.size() == b.values.size() && a.externals.size() == b.externals.size() &&
         a.slots.size() == b.slots.size() && NearnessOf(a, b) == Nearness{events, true, events};
}

}  // namespace

void OuterLane::StartRecording() {
  using InputViews = OuterRecorder::InputViews;
  recorder_ = std::make_unique<OuterRecorder>(inner_.ComputeDevice(), program_->views_move ? InputViews::kPrepared : InputViews::kEvents, options_.copied_bytes_max);
  mode_ = Mode::kRecord;
  note_ = program_->why_not;
}

void OuterLane::RecordEvent(OpInfo& info, c10::DispatchKeySet next, Stack* stack) {
  if (IsHostOnly(info, *stack) || PreparesInput(info, *stack) || IsQuestion(info) || IsBarrier(info, *stack)) {
    if (IsBarrier(info, *stack)) recorder_->NoteFetch();
    if (info.changes_metadata) recorder_->NoteReshaping(info, *stack);
    info.handle.redispatchBoxed(next, stack);
    return;
  }
  recorder_->BeginEvent(info, *stack);
  try {
    info.handle.redispatchBoxed(next, stack);
  } catch (...) {
    recorder_->DropEvent();
    throw;
  }
  recorder_->EndEvent(*stack);
}

void OuterLane::AddPlan(Program& program, std::shared_ptr<const OuterPlan> plan) {
  program.plans.insert(program.plans.begin(), std::move(plan));
  while (program.plans.size() > kPlansMax) {
    retired_.push_back(std::move(program.plans.back()));
    program.plans.pop_back();
  }
  program.fruitless = 0;
  program.record_until = 0;
  program.why_not.clear();
}

// What is recorded after a divergence is often a path known before. A second plan for it would push another one out.
bool OuterLane::FollowsKnownPlan(const OuterTrace& trace) {
  auto& plans = program_->plans;
  const auto known = std::find_if(plans.begin(), plans.end(), [&](const auto& plan) { return plan->Accepts(trace); });
  if (known == plans.end()) return false;
  std::rotate(plans.begin(), known, std::next(known));
  return true;
}

// Tensors that live for some steps and are made anew then, as gradients that are accumulated, look like state to two
// recordings in between. A path of which two plans have been made is compared with what it was at first: what has changed
// since is an input. Device graphs have the addresses of what they write, and stay as they are.
bool OuterLane::FollowsWitness(OuterTrace& trace) {
  if (!inner_.ComputeDevice().is_cpu()) return false;
  for (const Witness& witness : program_->witnesses) {
    if (witness.plans < 2 || !SamePath(*witness.recording, trace)) continue;
    PlanResult result = MakePlan(*witness.recording, std::move(trace));
    if (result.plan != nullptr) {
      AddPlan(*program_, std::move(result.plan));
      return true;
    }
    if (trace.events.empty()) {  // agreed, yet no plan may be made of them
      program_->why_not = result.why_not;
      return false;
    }
  }
  return false;
}

void OuterLane::KeepWitness(std::unique_ptr<OuterTrace> recording) {
  auto& witnesses = program_->witnesses;
  const auto known = std::find_if(witnesses.begin(), witnesses.end(),
                                  [&](const Witness& witness) { return SamePath(*witness.recording, *recording); });
  if (known != witnesses.end()) {
    ++known->plans;
    return;
  }
  if (witnesses.size() == kWitnessesMax) witnesses.erase(witnesses.begin());
  witnesses.push_back({std::move(recording)});
}

void OuterLane::FinishRecording() {
  inner_.SetListener(nullptr);
  std::unique_ptr<OuterTrace> trace = recorder_->Finish();
  recorder_.reset();
  Program& program = *program_;
  program.why_not = trace->refusal;
  const bool hopeless = program.refusals.Note(trace->refusal);
  if (trace->refusal.empty()) {
    if (FollowsKnownPlan(*trace)) return;
    program.why_not = "INNER_UNSTABLE: no second recording of this path yet";
    if (FollowsWitness(*trace)) return;
    if (program.rare.Expects(program.steps)) program.rare.NoteUnknown(program.steps);
    std::optional<Nearness> nearest;  // of the recording that the note is about
    for (auto it = program.recordings.rbegin(); it != program.recordings.rend() && !trace->events.empty(); ++it) {
      const Nearness nearness = NearnessOf(**it, *trace);
      PlanResult result = MakePlan(**it, std::move(*trace));
      if (result.plan != nullptr) {
        KeepWitness(std::move(*it));
        program.recordings.erase(std::next(it).base());
        if (!inner_.ComputeDevice().is_cpu()) result.plan->graphs = std::make_shared<PlanGraphs>(inner_.ComputeDevice());
        AddPlan(program, std::move(result.plan));
        return;
      }
      const bool agreed = trace->events.empty();
      if (agreed || nearness > nearest) {
        program.why_not = result.why_not;
        nearest = nearness;
      }
      if (result.view_moves && !program.views_move) {
        program.why_not = result.why_not;
        program.views_move = true;
        program.recordings.clear();  // made of events that will be none
        note_ = program.why_not;
        return;
      }
      if (agreed) break;  // yet no plan may be made of them
    }
    if (!trace->events.empty()) program.recordings.push_back(std::move(trace));
    if (program.recordings.size() > kRecordingsMax) program.recordings.erase(program.recordings.begin());
  }
  note_ = program.why_not;
  if (++program.fruitless < kFruitlessMax && !hopeless) return;
  program.fruitless = 0;
  program.record_until = 0;
  if (program.plans.empty()) Pause(program);
}

}  // namespace outrider::seam
