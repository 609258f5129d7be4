#pragma once
// How the graph runner's thread dispatches: below autograd, blind to both lanes, without gradient mode.

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>

#include "seam/keys.h"
#include "seam/settle.h"

namespace outrider::seam {

class RunnerScope {
 public:
  RunnerScope() : no_grad_(false) {}

 private:
  OnGraphRunner marker_;
  LanesOff lanes_off_;
  at::AutoDispatchBelowADInplaceOrView below_autograd_;
  c10::AutoGradMode no_grad_;
};

}  // namespace outrider::seam
