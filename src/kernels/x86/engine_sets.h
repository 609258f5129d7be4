#pragma once
// Each is defined in a unit compiled for that instruction set; call it only where the processor has it.

#include "kernels/engine.h"

namespace outrider::kernels {

EngineSet Avx2Engines();
EngineSet Avx512Engines();
EngineSet Avx512VnniEngines();
EngineSet Avx512Bf16Engines();
EngineSet AmxEngines();

}  // namespace outrider::kernels
