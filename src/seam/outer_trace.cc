#include "seam/outer_trace.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/clone.h>

#include <cstring>

#include "seam/keys.h"
#include "seam/lazy_impl.h"

namespace outrider::seam {

void Refuse(OuterTrace& trace, const std::string& reason) {
  if (trace.refusal.empty()) trace.refusal = reason;
}

at::Tensor TensorAt(const Stack& args, Place place) {
  const auto& value = args[place.arg];
  return place.element < 0 ? value.toTensor() : value.toListRef()[place.element].toTensor();
}

// torch tells nobody whether two counters are one; the handle is a single pointer.
bool ShareCounter(const c10::TensorImpl& a, const c10::TensorImpl& b) {
  static_assert(sizeof(c10::VariableVersion) == sizeof(void*));
  if (!a.version_counter().enabled()) return false;
  return std::memcmp(&a.version_counter(), &b.version_counter(), sizeof(void*)) == 0;
}

at::Tensor CopyNumber(const at::Tensor& tensor) {
  LanesOff off;
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  at::Tensor copy = at::clone(tensor);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) copy.unsafeGetTensorImpl()->set_wrapped_number(true);
  return copy;
}

bool SameNumber(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.unsafeGetTensorImpl()->is_wrapped_number() == b.unsafeGetTensorImpl()->is_wrapped_number() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.element_size()) == 0;
}

bool IsHostNumber(const c10::TensorImpl& tensor, c10::Device compute_device) {
  if (!tensor.device().is_cpu() || tensor.dim() != 0 || KindOf(tensor) != ImplKind::kPlain) return false;
  return !compute_device.is_cpu() || !tensor.requires_grad();
}

bool SameArg(const Arg& a, const Arg& b) {
  if (a.code != b.code || a.id != b.id || a.list.size() != b.list.size() || a.optional_list != b.optional_list) return false;
  if (a.code == Arg::Code::kConstant) return StructurallyEqual(a.constant, b.constant);
  if (a.code == Arg::Code::kNumber) return SameNumber(a.constant.toTensor(), b.constant.toTensor());
  for (size_t i = 0; i < a.list.size(); ++i) {
    if (!SameArg(a.list[i], b.list[i])) return false;
  }
  return true;
}

}  // namespace outrider::seam
