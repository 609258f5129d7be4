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

// Sets masks and fill of `model`. Code E_OPTION: too few or too many calibration units for coverage experts.
base::Result<ExpertFacts> ChooseExperts(const Options& options, const TokenData& data, RoutedModel& model);

}  // namespace outrider::moe
