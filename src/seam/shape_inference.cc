#include "seam/shape_inference.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <c10/core/Allocator.h>

#include "seam/lazy_impl.h"

namespace outrider::seam {
namespace {

using c10::StorageImpl;
using c10::TensorImpl;

const StorageImpl* StorageOf(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl() : nullptr;
}

bool CanStandFor(const at::Tensor& tensor, bool meta) {
  const auto& impl = *tensor.unsafeGetTensorImpl();
  if (meta) return tensor.is_meta() && tensor.layout() == c10::kStrided;
  return KindOf(impl) == ImplKind::kPlain && IsPlainStrided(impl) && impl.unsafe_storage();
}

OutputSpec Describe(const at::Tensor& tensor, c10::ArrayRef<at::Tensor> operands, c10::ArrayRef<at::Tensor> earlier) {
  OutputSpec spec;
  if (!tensor.defined()) return spec;
  spec.geometry = Geometry::Of(*tensor.unsafeGetTensorImpl());
  const auto* storage = StorageOf(tensor);
  spec.nbytes = storage->nbytes();
  for (size_t i = 0; i < operands.size(); ++i) {
    if (StorageOf(operands[i]) != storage) continue;
    if (spec.alias_input < 0) spec.alias_input = static_cast<int>(i);
    if (operands[i].unsafeGetTensorImpl() == tensor.unsafeGetTensorImpl()) spec.same_as_input = static_cast<int>(i);
  }
  if (spec.alias_input >= 0) return spec;
  for (size_t i = 0; i < earlier.size(); ++i) {
    if (StorageOf(earlier[i]) == storage) spec.alias_output = static_cast<int>(i);
  }
  return spec;
}

at::Tensor MetaLike(const TensorImpl& tensor, std::vector<std::pair<const StorageImpl*, c10::Storage>>& storages) {
  const auto* original = tensor.unsafe_storage().unsafeGetStorageImpl();
  c10::Storage storage;
  for (auto& [known, meta] : storages) {
    if (known == original) storage = meta;
  }
  if (!storage) {
    auto* allocator = c10::GetAllocator(c10::kMeta);
    storage = c10::Storage(c10::Storage::use_byte_size_t(), original->nbytes(), allocator->allocate(original->nbytes()), allocator, true);
    storages.emplace_back(original, storage);
  }
  auto impl = c10::make_intrusive<TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::Meta), tensor.dtype());
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_wrapped_number()) impl->set_wrapped_number(true);
  return at::Tensor(std::move(impl));
}

void PushMetaArguments(const Call& call, c10::ArrayRef<at::Tensor> metas, Stack& stack) {
  size_t slot = 0;
  for (size_t i = 0; i < call.info->args.size(); ++i) {
    const int count = call.tensor_counts[i];
    if (count < 0) {
      stack.push_back(call.args[i]);
    } else if (call.info->args[i].kind == ArgKind::kTensorList) {
      c10::List<at::Tensor> list;
      for (int j = 0; j < count; ++j) list.push_back(metas[slot++]);
      stack.emplace_back(std::move(list));
    } else if (call.info->args[i].kind == ArgKind::kOptionalTensorList) {
      c10::List<std::optional<at::Tensor>> list;
      for (int j = 0; j < count; ++j, ++slot) list.push_back(metas[slot].defined() ? std::optional(metas[slot]) : std::nullopt);
      stack.emplace_back(std::move(list));
    } else {
      stack.emplace_back(metas[slot++]);
    }
  }
}

bool NamesADevice(const Call& call) {
  for (size_t i = 0; i < call.info->args.size(); ++i) {
    if (call.tensor_counts[i] < 0 && call.args[i].isDevice()) return true;
  }
  return false;
}

}  // namespace

bool DescribeReturns(const Call& call, c10::ArrayRef<at::Tensor> operands, c10::ArrayRef<c10::IValue> results, bool meta,
                     ShapeClass& shapes) {
  std::vector<at::Tensor> earlier;
  for (size_t r = 0; r < results.size(); ++r) {
    ReturnSpec spec;
    if (call.info->returned_arg[r] >= 0) {
      spec.kind = ReturnSpec::Kind::kWrittenArgument;
      shapes.returns.push_back(std::move(spec));
      continue;
    }
    if (results[r].isInt()) {
      spec.kind = ReturnSpec::Kind::kNumber;
      spec.number = results[r].toInt();
      shapes.returns.push_back(std::move(spec));
      continue;
    }
    std::vector<at::Tensor> tensors;
    if (results[r].isTensor()) {
      tensors.push_back(results[r].toTensor());
    } else if (results[r].isTensorList()) {
      spec.kind = ReturnSpec::Kind::kTensorList;
      tensors = results[r].toTensorVector();
    } else {
      return false;
    }
    for (const auto& tensor : tensors) {
      if (tensor.defined() && !CanStandFor(tensor, meta)) return false;
      spec.outputs.push_back(Describe(tensor, operands, earlier));
      earlier.push_back(tensor);
    }
    shapes.returns.push_back(std::move(spec));
  }
  return true;
}

std::unique_ptr<ShapeClass> InferShapes(const Call& call) {
  if (!call.info->handle.hasComputedKernelForDispatchKey(c10::DispatchKey::Meta) || NamesADevice(call)) return nullptr;
  std::vector<std::pair<const StorageImpl*, c10::Storage>> storages;
  std::vector<at::Tensor> metas;
  for (const auto* tensor : call.tensors) metas.push_back(tensor == nullptr ? at::Tensor() : MetaLike(*tensor, storages));
  Stack stack;
  PushMetaArguments(call, metas, stack);
  try {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    call.info->handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), &stack);
  } catch (const std::exception&) {
    return nullptr;  // the recorded run decides; a real error shows itself there
  }
  auto shapes = std::make_unique<ShapeClass>();
  if (!DescribeReturns(call, metas, stack, /*meta=*/true, *shapes)) return nullptr;
  return shapes;
}

bool SamePrediction(const ShapeClass& inferred, const ShapeClass& recorded) {
  if (inferred.returns.size() != recorded.returns.size()) return false;
  for (size_t r = 0; r < recorded.returns.size(); ++r) {
    const auto& a = inferred.returns[r];
    const auto& b = recorded.returns[r];
    if (a.kind != b.kind || a.number != b.number || a.outputs.size() != b.outputs.size()) return false;
    for (size_t i = 0; i < a.outputs.size(); ++i) {
      const auto& x = a.outputs[i];
      const auto& y = b.outputs[i];
      if (!(x.geometry == y.geometry) || x.alias_input != y.alias_input || x.alias_output != y.alias_output ||
          x.same_as_input != y.same_as_input || (y.alias_input < 0 && y.alias_output < 0 && x.nbytes != y.nbytes)) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace outrider::seam
