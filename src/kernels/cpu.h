#pragma once
// The engines that this processor can run, the fastest first.

#include <span>

#include "kernels/engine.h"

namespace outrider::kernels {

// At least the portable ones; no prefill of kI8. Found once per process; asks the operating system for tile registers
// where they exist.
std::span<const PrefillEngine* const> PrefillEngines(Number number);
std::span<const DecodeEngine* const> DecodeEngines(Number number);
std::span<const LinearEngine* const> LinearEngines(Number number);
std::span<const TokenEngine* const> TokenEngines();

}  // namespace outrider::kernels
