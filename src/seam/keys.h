#pragma once
// The two dispatch keys the lanes sit on: which ones are free, how they are switched on for a thread.

#include <ATen/core/ivalue.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DispatchKeySet.h>

#include <string>

namespace outrider::seam {

using BoxedHandler = void (*)(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

struct LaneKeys {
  c10::DispatchKey inner = c10::DispatchKey::Undefined;  // below autograd
  c10::DispatchKey outer = c10::DispatchKey::Undefined;  // above autograd
  bool HasInner() const { return inner != c10::DispatchKey::Undefined; }
  bool HasOuter() const { return outer != c10::DispatchKey::Undefined; }
};

// Claims the first free candidate of each lane by registering a boxed fallback. Once per process; later calls answer the
// same. Never throws: a lane without a free key stays off.
const LaneKeys& ClaimKeys(BoxedHandler inner, BoxedHandler outer);
const LaneKeys& Keys();
std::string DescribeKeys();

// Includes the lanes' keys in this thread's dispatch, or takes them out.
void EnrolThread(bool on);
bool ThreadEnrolled();

// Both lanes blind for the scope, on this thread.
class LanesOff {
 public:
  LanesOff();

 private:
  c10::impl::ExcludeDispatchKeyGuard guard_;
};

}  // namespace outrider::seam
