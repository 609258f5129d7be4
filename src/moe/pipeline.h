#pragma once
// The stages of a refactoring in order, resumable: experts, rounds of router and expert stage, evaluation, model.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "moe/options.h"
#include "moe/workbench.h"

namespace outrider::moe {

struct Stage {
  StageKind kind = StageKind::kRouter;
  int64_t round = 0;
  int64_t steps = 0;
  friend bool operator==(const Stage&, const Stage&) = default;
};

// Stages that have steps, in order: per round router (when there is one), then experts; a last router stage.
std::vector<Stage> StagesOf(const Options& options);

struct Progress {
  std::string stage;                       // "router" or "expert"
  int64_t round = 0, step = 0, steps = 0;  // of the stage
  int64_t position = 0, positions = 0;     // steps done, of all stages
  StepFacts facts;
  double tokens_per_s = 0;
};

// Called behind every step; false asks to stop at once, behind a checkpoint.
using OnProgress = std::function<bool(const Progress&)>;

// Works in the folder options.out, made if it is missing: log.jsonl, experts.json, checkpoint-<position>.safetensors
// (the last two), result.json, routes.safetensors, model/. A folder with a checkpoint of the same options is resumed.
// Returns the text of result.json, or, when seconds_max, steps_max or `progress` stopped it early, {"done": false,
// "position": ...}. Codes: those of Workbench.
base::Result<std::string> Refactor(const Options& options, const OnProgress& progress);

}  // namespace outrider::moe
