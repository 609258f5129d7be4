#pragma once
// Output shapes of a call without running it: the operator's Meta kernel on tensors without bytes.

#include <memory>

#include "seam/signature.h"

namespace outrider::seam {

// nullptr when the operator has no Meta kernel, or the kernel refuses. Never touches data. May run Python (some Meta
// kernels are written in it).
std::unique_ptr<ShapeClass> InferShapes(const Call& call);

// An `out` argument of the call may have other sizes afterwards: told by its Meta kernel, and supposed without one.
bool MayResize(const Call& call);

// True when `inferred` predicts what was recorded: geometry and aliasing of every output.
bool SamePrediction(const ShapeClass& inferred, const ShapeClass& recorded);

// Describes the outputs of a call that has run on `operands` (one per tensor slot, undefined allowed). False when an
// output is something a placeholder cannot stand for.
bool DescribeReturns(const Call& call, c10::ArrayRef<at::Tensor> operands, c10::ArrayRef<c10::IValue> results, bool meta,
                     ShapeClass& shapes);

}  // namespace outrider::seam
