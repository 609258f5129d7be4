#include "coexec/report.h"

#include <algorithm>

namespace outrider::coexec {
namespace {

constexpr size_t kOpenMax = 8;  // steps the graph runner may lag behind, and some

}  // namespace

void Report::Complete(Row& row, const seam::TierOutcome& outcome) {
  if (outcome.graph_ops.load() > 0) row.tier = "T2";
  if (row.note.empty()) row.note = outcome.WhyNot();
}

const std::deque<Row>& Report::Rows() const {
  for (const auto& [step, outcome] : open_) {
    const auto row = std::find_if(rows_.rbegin(), rows_.rend(), [step = step](const Row& candidate) { return candidate.step == step; });
    if (row != rows_.rend()) Complete(*row, *outcome);
  }
  return rows_;
}

void Report::Clear() {
  rows_.clear();
  open_.clear();
}

void Report::Add(const StepFacts& facts, const seam::StepStats& stats) {
  Row row;
  row.step = facts.step;
  row.name = facts.name;
  row.lane = facts.lane;
  row.tier = facts.tier;
  row.recorded = facts.recorded;
  row.note = facts.note;
  row.events = stats.events;
  row.device_ops = stats.DeviceOps();
  row.covered_ops = stats.covered_ops;
  row.host_ops = stats.host_ops;
  row.inline_ops = stats.inline_ops;
  row.feeds = stats.feeds;
  row.copied_bytes = stats.copied_bytes;
  row.fetches = stats.fetches;
  for (size_t i = 0; i < stats.flushes.size(); ++i) {
    if (stats.flushes[i] > 0) row.flushes[seam::CodeOf(static_cast<seam::FlushReason>(i))] = stats.flushes[i];
  }
  for (const auto& divergence : stats.divergences) {
    row.divergences.push_back({divergence.event, seam::CodeOf(divergence.reason), divergence.expected, divergence.got, divergence.field,
                               divergence.where});
  }
  row.replayed_events = stats.replayed_events;
  row.host_us = static_cast<double>(facts.host_ns) / 1e3;
  row.host_wait_us = static_cast<double>(facts.host_wait_ns) / 1e3;
  row.runner_busy_us = static_cast<double>(facts.runner_busy_ns) / 1e3;
  row.runner_wait_us = static_cast<double>(facts.host_ns - facts.runner_busy_ns) / 1e3;
  if (row.runner_wait_us < 0) row.runner_wait_us = 0;
  if (rows_.size() == kRowsMax) rows_.pop_front();
  rows_.push_back(std::move(row));
  if (facts.outcome == nullptr) return;
  open_.emplace_back(facts.step, facts.outcome);
  if (open_.size() <= kOpenMax) return;
  Rows();
  open_.pop_front();
}

}  // namespace outrider::coexec
