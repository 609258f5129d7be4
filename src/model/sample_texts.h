#pragma once
// Writes many texts at once with one model. Draws depend on seed, text and place alone, so a text does not depend on
// how many are written beside it, up to the rounding of the model's arithmetic.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "base/result.h"
#include "model/config.h"
#include "model/parameters.h"
#include "model/text_rows.h"
#include "sampling/sampler.h"

namespace outrider::model {

using sampling::Sampling;

struct SamplingRun {
  int64_t rows = 64;   // texts at once
  int64_t window = 0;  // steps between two looks at the ids; 0: 1 on the CPU, 16 elsewhere, where a look makes it wait
};

// One id per row of logits [B, V], int64 [B]: PickToken with uniform [B] in [0, 1) instead of a seed. temperatures:
// undefined, or [B] fp32, of each row instead of the sampling's, unless that is 0.
at::Tensor DrawTokens(const at::Tensor& logits, const Sampling& sampling, const at::Tensor& uniform,
                      const at::Tensor& temperatures = {});

// Writes the texts of `plan` (its seed counts, not that of `sampling`). `on_text` gets them in the order of their
// numbers; false ends the run. Codes: E_PROMPT an id outside the vocabulary or a prompt that is too long; E_OPTION a
// length that the model has no positions for.
base::Result<void> SampleTexts(const Config& config, const Parameters& parameters, const TextPlan& plan,
                               const Sampling& sampling, const SamplingRun& run,
                               const std::function<bool(const SampledText&)>& on_text);

}  // namespace outrider::model
