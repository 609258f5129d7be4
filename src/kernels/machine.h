#pragma once
// Engines for instruction sets that this processor has beyond the portable form; x86/ or no_x86/ defines it.

#include <vector>

#include "kernels/engine.h"

namespace outrider::kernels {

std::vector<EngineSet> MachineEngines();  // the fastest first

}  // namespace outrider::kernels
