#include "coexec/report.h"

namespace outrider::coexec {

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
}

}  // namespace outrider::coexec
