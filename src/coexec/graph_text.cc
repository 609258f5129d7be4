// Session: the TraceGraph as text or picture source.

#include <string>
#include <unordered_map>

#include "coexec/session.h"
#include "trace/dot.h"
#include "trace/mermaid.h"
#include "trace/text.h"

namespace outrider::coexec {
namespace {

std::string Render(const trace::TraceGraph& graph, const trace::NameOf& name_of, const std::string& format) {
  if (format == "dot") return trace::ToDot(graph, name_of);
  if (format == "mermaid") return trace::ToMermaid(graph, name_of);
  TORCH_CHECK_VALUE(format == "text", "outrider: graph format is text, dot or mermaid, got '", format, "'");
  return trace::PrintGraph(graph, name_of);
}

// Host events of all plans, merged. Names are interned by operator and constant arguments.
class EventGraph {
 public:
  void Add(const seam::OuterPlan& plan) {
    trace::Trace trace;
    producer_.assign(plan.values.size(), {});
    for (size_t i = 0; i < plan.events.size(); ++i) trace.push_back(Record(plan, static_cast<uint32_t>(i)));
    for (int fetch : plan.fetch_events) {
      if (fetch > 0) trace[static_cast<size_t>(fetch) - 1].fetched = true;
    }
    graph_.Merge(trace);
  }
  const trace::TraceGraph& Graph() const { return graph_; }
  std::string NameOf(trace::SignatureId id) const { return names_[id.value]; }

 private:
  trace::SignatureId Intern(const seam::OuterEvent& event) {
    const std::string name = event.backward ? "BACKWARD" : event.info->name;
    uint64_t hash = event.args.size();
    for (const auto& arg : event.args) {
      hash = seam::HashMix(hash, static_cast<uint64_t>(arg.code));
      if (arg.code == seam::Arg::Code::kConstant) hash = seam::HashIValue(hash, arg.constant);
    }
    const auto [it, fresh] = ids_.try_emplace(name + "#" + std::to_string(hash), static_cast<uint32_t>(names_.size()));
    if (fresh) names_.push_back(name);
    return trace::SignatureId{it->second};
  }

  void AddInput(const seam::OuterPlan& plan, const seam::Arg& arg, std::vector<trace::Input>& inputs) const {
    trace::Input input;
    switch (arg.code) {
      case seam::Arg::Code::kValue: input = {trace::Origin::kValue, producer_[arg.id].first, producer_[arg.id].second}; break;
      case seam::Arg::Code::kExternal: {
        const auto& external = plan.externals[arg.id];
        input.origin = external.persistent ? trace::Origin::kPersistent : trace::Origin::kFeed;
        if (external.persistent) input.index = plan.persistent_records[plan.slots[external.slot].persistent]->persistent_id;
        break;
      }
      case seam::Arg::Code::kList:
        for (const auto& element : arg.list) AddInput(plan, element, inputs);
        return;
      default: return;
    }
    inputs.push_back(input);
  }

  trace::OpRecord Record(const seam::OuterPlan& plan, uint32_t index) {
    const seam::OuterEvent& event = plan.events[index];
    trace::OpRecord record;
    record.signature = Intern(event);
    for (const auto& arg : event.args) AddInput(plan, arg, record.inputs);
    auto produce = [&](int value) {
      if (value >= 0) producer_[value] = {trace::NodeId{index}, record.outputs++};
    };
    for (const auto& output : event.outputs) {
      if (output.kind == seam::OuterOutput::Kind::kValue) produce(output.value);
      for (int value : output.values) produce(value);
    }
    for (int value : event.leaf_values) produce(value);
    return record;
  }

  trace::TraceGraph graph_;
  std::unordered_map<std::string, uint32_t> ids_;
  std::vector<std::string> names_;
  std::vector<std::pair<trace::NodeId, uint32_t>> producer_;  // of each value of the plan at hand
};

}  // namespace

std::string Session::Graph(const std::string& format, const std::string& lane) {
  TORCH_CHECK_VALUE(lane == "inner" || lane == "outer", "outrider: lane is inner or outer, got '", lane, "'");
  if (!usable_) return "";
  if (lane == "inner") {
    const auto name_of = [this](trace::SignatureId id) { return inner_->Signatures().At(id).Op().name; };
    return Render(inner_->Paths().Graph(), name_of, format);
  }
  EventGraph events;
  for (const auto* plan : outer_->Plans()) events.Add(*plan);
  return Render(events.Graph(), [&](trace::SignatureId id) { return events.NameOf(id); }, format);
}

}  // namespace outrider::coexec
