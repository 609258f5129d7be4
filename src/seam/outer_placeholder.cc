#include "seam/outer_placeholder.h"

#include <torch/csrc/autograd/variable.h>

#include "seam/outer_lane.h"
#include "seam/outer_step.h"

namespace outrider::seam {
namespace {

using c10::TensorImpl;
using torch::autograd::AutogradMeta;
using torch::autograd::CreationMeta;
using torch::autograd::DifferentiableViewMeta;

// The storage offset of a tensor, in elements of another type.
int64_t InElements(const TensorImpl& tensor, c10::ScalarType dtype) {
  return tensor.storage_offset() * static_cast<int64_t>(tensor.itemsize()) / static_cast<int64_t>(c10::elementSize(dtype));
}

at::Tensor Owning(const TensorImpl* tensor) {
  return at::Tensor(c10::intrusive_ptr<TensorImpl, c10::UndefinedTensorImpl>::reclaim_copy(const_cast<TensorImpl*>(tensor)));
}

class HistoryMeta final : public AutogradMeta, public base::FreeListed<HistoryMeta> {
 public:
  using AutogradMeta::AutogradMeta;
};

class ViewMeta final : public DifferentiableViewMeta, public base::FreeListed<ViewMeta> {
 public:
  using DifferentiableViewMeta::DifferentiableViewMeta;
};

void SetHistory(TensorImpl& tensor, torch::autograd::Edge edge) {
  if (tensor.autograd_meta() == nullptr) tensor.set_autograd_meta(std::make_unique<HistoryMeta>());
  auto& meta = static_cast<AutogradMeta&>(*tensor.autograd_meta());
  meta.grad_fn_ = std::move(edge.function);
  meta.output_nr_ = edge.input_nr;
}

}  // namespace

OuterPlaceholder::~OuterPlaceholder() {
  if (step_ != nullptr && !step_->over && step_->live[value_] == this) step_->live[value_] = nullptr;
}

bool IsCovered(const TensorImpl& tensor) {
  if (KindOf(tensor) != ImplKind::kOuterPlaceholder) return false;
  const OuterStep* step = static_cast<const OuterPlaceholder&>(tensor).Step();
  return step != nullptr && !step->over;
}

const TensorImpl* BaseOf(const TensorImpl& tensor) {
  const auto* meta = static_cast<const AutogradMeta*>(tensor.autograd_meta());
  if (meta == nullptr || !meta->is_view_) return &tensor;
  const auto& view = static_cast<const DifferentiableViewMeta&>(*meta);
  return view.has_bw_view() ? view.get_backward_view().base_.unsafeGetTensorImpl() : &tensor;
}

// The storage of a value; `geometry` is moved where it lies in it.
c10::Storage OuterLane::StorageOf(const OuterValue& value, Geometry& geometry) {
  const OuterPlan& plan = *step_->plan;
  const Slot& slot = plan.slots[value.slot];
  if (!slot.external) {
    c10::Storage& token = step_->tokens[value.slot];
    if (token) return token;
    StorageRecord* record = nullptr;
    token = MakeToken(slot.nbytes, slot.device, &record);
    record->created_step = step_->id;
    record->outer_step = step_->id;
    record->outer_slot = value.slot;
    return token;
  }
  for (int i : plan.externals_of_slot[value.slot]) {
    const External& external = plan.externals[i];
    if (external.persistent) return external.tensor.lock()->unsafe_storage();
    if (!step_->bound[i].defined()) continue;
    const TensorImpl& bound = *step_->bound[i].unsafeGetTensorImpl();
    if (slot.snapshot) geometry.offset += InElements(bound, geometry.dtype);
    return bound.unsafe_storage();
  }
  return {};
}

// Makes `impl` a view, as autograd sees it, of what its source is a view of.
void OuterLane::BecomeView(TensorImpl& impl, int value, const Stack* args) {
  at::Tensor base;
  const ViewOf& view = step_->plan->values[value].view;
  if (!view.OfHidden()) {
    base = Owning(BaseOf(*TensorAt(*args, view.source).unsafeGetTensorImpl()));
  } else {
    const auto& geometry = view.hidden_base;
    auto hidden = c10::make_intrusive<LazyImpl>(TensorImpl::VIEW, c10::Storage(impl.unsafe_storage()), impl.key_set(),
                                                c10::scalarTypeToTypeMeta(geometry.dtype));
    hidden->set_sizes_and_strides(geometry.sizes, geometry.strides, geometry.offset);
    if (view.hidden_requires_grad) SetHistory(*hidden, HistoryOf(value));
    base = at::Tensor(std::move(hidden));
  }
  impl.set_autograd_meta(std::make_unique<ViewMeta>(&impl, torch::autograd::ViewInfo(std::move(base), nullptr, nullptr), std::nullopt,
                                                    /*shared_view_info=*/true, static_cast<CreationMeta>(view.creation)));
}

at::Tensor OuterLane::MakePlaceholder(int id, const Stack* args) {
  const OuterValue& value = step_->plan->values[id];
  Geometry geometry = value.geometry;
  c10::Storage storage = StorageOf(value, geometry);
  auto impl = c10::make_intrusive<OuterPlaceholder>(TensorImpl::VIEW, std::move(storage), value.keys,
                                                    c10::scalarTypeToTypeMeta(geometry.dtype), step_, id);
  impl->set_sizes_and_strides(geometry.sizes, geometry.strides, geometry.offset);
  if (geometry.wrapped_number) impl->set_wrapped_number(true);
  if (value.view.any) BecomeView(*impl, id, args);
  if (value.counter.arg >= 0) impl->set_version_counter(TensorAt(*args, value.counter).unsafeGetTensorImpl()->version_counter());
  for (uint32_t i = 0; i < value.version && !impl->is_inference(); ++i) impl->bump_version();
  if (NeedsHistory(value)) {
    SetHistory(*impl, HistoryOf(id));
  } else if (value.requires_grad && !impl->requires_grad()) {
    impl->set_requires_grad(true);
  }
  step_->live[id] = impl.get();
  return at::Tensor(std::move(impl));
}

}  // namespace outrider::seam
