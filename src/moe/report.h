#pragma once
// What a refactoring found, as JSON text.

#include <string>
#include <vector>

#include "moe/workbench.h"

namespace outrider::moe {

// {"layers": [{"permanent", "union", "dead", "live_signatures", "active": [per expert], "delta"}], "coverage": [per
// round],
//  "reseeded", "statistic", "candidates": {statistic: nats per token}, "hash"}; sizes in channels.
std::string ToJson(const ExpertFacts& facts);

// {domain: {"tokens", "nats" (sum), "documents": [[document, tokens, nats (sum)], ...], and with routing "load":
// [tokens per
//  expert], "stay_rate", "entropy" (share of log N), "run_lengths": [k: runs of 2^k to 2^(k+1) - 1 tokens]}}
std::string ToJson(const std::vector<DomainLoss>& domains);

// {"lane", "covered_share", "events", "fetches", "host_us", "host_wait_us", "runner_busy_us", and where there are any
// "note" (why the outer lane did not take the step), "flushes": {reason: count}, "inline_ops": {operator: count},
// "divergences": [{"event", "code", "expected", "got", "field"}]}; see docs/guide/explain.md.
std::string ToJson(const Row& row);

}  // namespace outrider::moe
