// OuterLane: why an event did not fit its plan, in words of the program. Cold path: once for a step that diverges.

#include <ATen/SavedTensorHooks.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "seam/outer_lane.h"
#include "seam/storage_record.h"

namespace outrider::seam {
namespace {

constexpr size_t kTextMax = 80;  // characters

std::string TextOf(const at::Tensor& tensor) {
  return tensor.defined() ? Geometry::Of(*tensor.unsafeGetTensorImpl()).Text() : "no tensor";
}

// The shortest that reads back as the same number.
std::string TextOf(double number) {
  std::array<char, 32> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), number).ptr;
  return {text.data(), end};
}

// torch could print it into a stream, but a stream must not cross between libraries built with other C++ runtimes.
std::string TextOf(const c10::IValue& value) {
  if (value.isTensor()) return TextOf(value.toTensor());
  if (value.isTensorList()) return std::to_string(value.toListRef().size()) + " tensors";
  if (value.isNone()) return "None";
  if (value.isBool()) return value.toBool() ? "True" : "False";
  if (value.isInt()) return std::to_string(value.toInt());
  if (value.isDouble()) return TextOf(value.toDouble());
  if (value.isString()) return value.toStringRef();
  if (value.isDevice()) return value.toDevice().str();
  if (!value.isList()) return value.tagKind();
  std::string text = "[";
  for (const auto& element : value.toListRef()) {
    text += (text.size() == 1 ? "" : ", ") + TextOf(element);
    if (text.size() > kTextMax) return text.substr(0, kTextMax) + "...";
  }
  return text + "]";
}

std::string TextOf(const Arg& arg) {
  switch (arg.code) {
    case Arg::Code::kNone: return "None";
    case Arg::Code::kUndefined: return "no tensor";
    case Arg::Code::kList: return std::to_string(arg.list.size()) + " tensors";
    case Arg::Code::kConstant: return TextOf(arg.constant);
    case Arg::Code::kNumber: return "the recorded number";
    default: return "a tensor";
  }
}

std::string Placement(const Geometry& geometry) {
  std::string text = "strides (";
  for (size_t i = 0; i < geometry.strides.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(geometry.strides[i]);
  return text + "), offset " + std::to_string(geometry.offset);
}

std::string OnOff(bool on) { return on ? "on" : "off"; }

Divergence Of(DivergenceReason reason, std::string field, std::string expected, std::string got) {
  Divergence divergence;
  divergence.reason = reason;
  divergence.field = std::move(field);
  divergence.expected = std::move(expected);
  divergence.got = std::move(got);
  return divergence;
}

Divergence EnvDifference(const Env& recorded, const Env& now) {
  const auto differs = [](const char* field, std::string expected, std::string got) {
    return Of(DivergenceReason::kEnv, field, std::move(expected), std::move(got));
  };
  if (recorded.grad != now.grad) return differs("gradient mode", OnOff(recorded.grad), OnOff(now.grad));
  if (recorded.inference != now.inference) return differs("inference mode", OnOff(recorded.inference), OnOff(now.inference));
  if (recorded.autocast_cpu != now.autocast_cpu) return differs("autocast", OnOff(recorded.autocast_cpu), OnOff(now.autocast_cpu));
  if (recorded.autocast_cuda != now.autocast_cuda) return differs("autocast", OnOff(recorded.autocast_cuda), OnOff(now.autocast_cuda));
  if (recorded.default_dtype != now.default_dtype) {
    return differs("default dtype", c10::toString(recorded.default_dtype), c10::toString(now.default_dtype));
  }
  if (recorded.flags != now.flags) return differs("a setting that changes numerics", "as it was", "another");
  if (!(recorded.stream == now.stream)) return differs("stream", "the recorded one", "another");
  return differs("autocast", "with the recorded dtype and cache", "with others");
}

}  // namespace

// The operator that a value comes from.
std::string OuterLane::OriginOf(int value) const {
  for (const auto& event : step_->plan->events) {
    for (const auto& output : event.outputs) {
      if (output.value != value && std::count(output.values.begin(), output.values.end(), value) == 0) continue;
      return "a result of " + event.info->name;
    }
  }
  return "a gradient";
}

Divergence OuterLane::DiagnoseTensor(const Arg& arg, const at::Tensor& tensor, const std::string& name) const {
  const bool external = arg.code == Arg::Code::kExternal;
  if (!tensor.defined() || (!external && arg.code != Arg::Code::kValue)) return Of(DivergenceReason::kArgument, name, TextOf(arg), TextOf(tensor));
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  const External* input = external ? &step_->plan->externals[arg.id] : nullptr;
  const Geometry& expected = external ? input->geometry : step_->plan->values[arg.id].geometry;
  Geometry got = Geometry::Of(impl);
  if (input == nullptr || input->snapshot) got.offset = expected.offset;
  if (expected.Text() != got.Text()) return Of(DivergenceReason::kMeta, name, expected.Text(), got.Text());
  if (!(expected == got)) return Of(DivergenceReason::kMeta, name, Placement(expected), Placement(got));
  const bool requires_grad = external ? input->requires_grad : step_->plan->values[arg.id].requires_grad;
  if (requires_grad != tensor.requires_grad()) {
    return Of(DivergenceReason::kMeta, "requires_grad of " + name, OnOff(requires_grad), OnOff(tensor.requires_grad()));
  }
  const StorageRecord* record = RecordOf(impl);
  if (record != nullptr && record->synchronous.load(std::memory_order_relaxed)) {
    return Of(DivergenceReason::kRawAccess, name, "memory that only tensors use", "memory that is used directly");
  }
  const std::string recorded = !external ? OriginOf(arg.id) : input->persistent ? "the same tensor in each step" : "an input of its own";
  const std::string now = IsCovered(impl) ? OriginOf(static_cast<const OuterPlaceholder&>(impl).Value()) : "another tensor";
  return Of(DivergenceReason::kWiring, name, recorded, now);
}

Divergence OuterLane::DiagnoseArgument(const Arg& arg, const c10::IValue& value, const std::string& name) {
  if (arg.code == Arg::Code::kList && value.isList() && value.toListRef().size() == arg.list.size()) {
    const auto list = value.toListRef();
    for (size_t i = 0; i < list.size(); ++i) {
      if (!list[i].isTensor() || MatchTensor(arg.list[i], list[i].toTensor())) continue;
      return DiagnoseTensor(arg.list[i], list[i].toTensor(), name + "[" + std::to_string(i) + "]");
    }
  }
  if (value.isTensor() && arg.code != Arg::Code::kList && arg.code != Arg::Code::kConstant) return DiagnoseTensor(arg, value.toTensor(), name);
  return Of(DivergenceReason::kArgument, name, TextOf(arg), TextOf(value));
}

Divergence OuterLane::Diagnose(const OpInfo& info, const c10::IValue* args) {
  const bool known = static_cast<size_t>(step_->cursor) < step_->plan->events.size();
  const OuterEvent* event = known ? &step_->plan->events[step_->cursor] : nullptr;
  const std::string name = event == nullptr ? "end of step" : event->backward ? "backward" : event->info->name;
  if (step_->cursor == force_at_) return Of(DivergenceReason::kForced, "operator", name, info.name);
  if (diverge_requested_) return Of(DivergenceReason::kRawAccess, "memory", "left to operators", "used directly");
  if (c10::impl::dispatch_mode_enabled()) return Of(DivergenceReason::kEnv, "dispatch mode", "none", "active");
  if (!at::SavedTensorDefaultHooks::get_tls_state().stack.empty()) return Of(DivergenceReason::kEnv, "saved-tensor hooks", "none", "active");
  if (event == nullptr || event->info != &info) return Of(DivergenceReason::kNewPath, "operator", name, info.name);
  const Env env = Env::Current();
  if (!(event->env == env)) return EnvDifference(event->env, env);
  newly_bound_.clear();
  Divergence found = Of(DivergenceReason::kNewPath, "operator", name, info.name);
  for (size_t i = 0; i < event->args.size(); ++i) {
    if (MatchArg(event->args[i], args[i])) continue;
    const auto& argument = info.handle.schema().arguments()[i].name();
    found = DiagnoseArgument(event->args[i], args[i], argument + " of " + info.name);
    break;
  }
  Unbind(0);
  return found;
}

}  // namespace outrider::seam
