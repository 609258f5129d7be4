#include "seam/outer_placeholder.h"

#include "seam/outer_step.h"

namespace outrider::seam {

OuterPlaceholder::OuterPlaceholder(c10::Storage&& storage, c10::DispatchKeySet keys, caffe2::TypeMeta dtype,
                                   std::shared_ptr<OuterStep> step, int value)
    : LazyImpl(std::move(storage), keys, dtype), step_(std::move(step)), value_(value) {}

OuterPlaceholder::OuterPlaceholder(ImplType view, c10::Storage&& storage, c10::DispatchKeySet keys, caffe2::TypeMeta dtype,
                                   std::shared_ptr<OuterStep> step, int value)
    : LazyImpl(view, std::move(storage), keys, dtype), step_(std::move(step)), value_(value) {}

OuterPlaceholder::~OuterPlaceholder() {
  if (step_ != nullptr && !step_->over && step_->live[value_] == this) step_->live[value_] = nullptr;
}

}  // namespace outrider::seam
