#pragma once
// From calibration text to masks: every kind of experts that an option can ask for.

#include <cstdint>

#include "base/result.h"
#include "model/config.h"
#include "moe/options.h"
#include "moe/routed_model.h"
#include "moe/token_data.h"
#include "moe/workbench.h"

namespace outrider::moe {

// Channels of a layer that a token uses.
int64_t KeptChannels(const Options& options, const model::Config& config);

// A router per layer of the form that goes with the experts, all 0: what tuning starts from, but for carved experts,
// and what a checkpoint is read into. Needs the masks.
LayerRouter EmptyLayerRouter(const Options& options, const RoutedModel& model);

// Sets masks and fill of `model`, and the router of carved experts. Code E_OPTION: too few or too many calibration
// units for coverage experts; sizes that carved experts cannot have.
base::Result<ExpertFacts> ChooseExperts(const Options& options, const TokenData& data, RoutedModel& model);

}  // namespace outrider::moe
