#pragma once
// A placeholder of the outer lane: it knows which value of which step it stands for, so that a diverging step can hand
// the replayed tensor to it. Once its step is over it is an ordinary lazy tensor.

#include <memory>

#include "base/free_list.h"
#include "seam/lazy_impl.h"

namespace outrider::seam {

class OuterStep;

class OuterPlaceholder final : public LazyImpl, public base::FreeListed<OuterPlaceholder> {
 public:
  OuterPlaceholder(c10::Storage&& storage, c10::DispatchKeySet keys, caffe2::TypeMeta dtype,
                   std::shared_ptr<OuterStep> step, int value)
      : LazyImpl(std::move(storage), keys, dtype), step_(std::move(step)), value_(value) {}
  OuterPlaceholder(ImplType view, c10::Storage&& storage, c10::DispatchKeySet keys, caffe2::TypeMeta dtype,
                   std::shared_ptr<OuterStep> step, int value)
      : LazyImpl(view, std::move(storage), keys, dtype), step_(std::move(step)), value_(value) {}
  ~OuterPlaceholder() override;

  OuterStep* Step() const { return step_.get(); }
  int Value() const { return value_; }

 private:
  std::shared_ptr<OuterStep> step_;
  int value_;
};

// A result of the covered step under way: its history, if it requires grad, is a stand-in.
bool IsCovered(const c10::TensorImpl& tensor);
// What autograd says that the tensor is a view of; itself, if of nothing.
const c10::TensorImpl* BaseOf(const c10::TensorImpl& tensor);

}  // namespace outrider::seam
