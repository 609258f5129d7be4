#pragma once
// The shape of a model under the names that the torch side uses.

#include "spec/config.h"

namespace outrider::model {

using spec::Config;
using spec::LoadConfig;
using spec::ParseConfig;
using spec::RopeScaling;
using spec::ToJson;

}  // namespace outrider::model
