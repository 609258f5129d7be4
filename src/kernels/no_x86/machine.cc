#include "kernels/machine.h"

namespace outrider::kernels {

std::vector<EngineSet> MachineEngines() { return {}; }

}  // namespace outrider::kernels
