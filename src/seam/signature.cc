#include "seam/signature.h"
#include "seam/shape_inference.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <cstring>

#include "seam/lazy_impl.h"

namespace outrider::seam {
namespace {

// Sizes of absent optional arguments; no real size is this small.
constexpr int64_t kAbsentSize = INT64_MIN;

// The type of a late-bound scalar is structural although its value is not: it takes part in type promotion.
uint64_t ScalarTag(const c10::IValue& value) {
  if (value.isNone()) return 0;
  if (value.isInt()) return 1;
  if (value.isDouble()) return 2;
  if (value.isBool()) return 3;
  if (value.isComplexDouble()) return 4;
  if (value.isList()) return 16 + value.toListRef().size();
  return 5;
}

bool ShapesMatch(const ShapeClass& shapes, const Call& call, c10::ArrayRef<int64_t> sizes) {
  if (c10::ArrayRef<int64_t>(shapes.sizes) != sizes || shapes.inputs.size() != call.tensors.size()) return false;
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    const auto* tensor = call.tensors[i];
    if (tensor == nullptr ? shapes.inputs[i].defined : !shapes.inputs[i].Matches(*tensor)) return false;
  }
  return true;
}

uint64_t HashShapes(const Call& call, c10::ArrayRef<int64_t> sizes) {
  uint64_t hash = 7;
  for (int64_t size : sizes) hash = HashMix(hash, static_cast<uint64_t>(size));
  for (const auto* tensor : call.tensors) hash = tensor == nullptr ? HashMix(hash, 11) : HashGeometry(hash, *tensor);
  return hash;
}

uint64_t HashCall(const Call& call, const Env& env) {
  uint64_t hash = HashMix(reinterpret_cast<uintptr_t>(call.info), env.flags);
  hash = HashMix(hash, (env.grad ? 1 : 0) + (env.inference ? 2 : 0) + (env.autocast_cpu ? 4 : 0) + (env.autocast_cuda ? 8 : 0));
  for (size_t i = 0; i < call.info->args.size(); ++i) {
    const ArgKind kind = call.info->args[i].kind;
    hash = HashMix(hash, static_cast<uint64_t>(call.tensor_counts[i] + 2));
    if (kind == ArgKind::kLateScalar || kind == ArgKind::kLateScalarList) hash = HashMix(hash, ScalarTag(call.args[i]));
    if (kind == ArgKind::kStructural) hash = HashIValue(hash, call.args[i]);
  }
  for (const auto* tensor : call.tensors) hash = HashMix(hash, tensor != nullptr ? 1 : 0);
  return hash;
}

}  // namespace

bool StructurallyEqual(const c10::IValue& a, const c10::IValue& b) {
  if (a.isNone()) return b.isNone();
  if (a.isInt()) return b.isInt() && a.toInt() == b.toInt();
  if (a.isBool()) return b.isBool() && a.toBool() == b.toBool();
  if (a.isDouble()) {
    if (!b.isDouble()) return false;
    const double x = a.toDouble(), y = b.toDouble();
    return std::memcmp(&x, &y, sizeof x) == 0;
  }
  if (a.isString()) return b.isString() && a.toStringRef() == b.toStringRef();
  if (a.isDevice()) return b.isDevice() && a.toDevice() == b.toDevice();
  if (a.isGenerator()) return b.isGenerator() && a.toGenerator() == b.toGenerator();
  if (a.isComplexDouble()) return b.isComplexDouble() && a.toComplexDouble() == b.toComplexDouble();
  if (a.isList()) {
    if (!b.isList()) return false;
    const auto x = a.toListRef(), y = b.toListRef();
    if (x.size() != y.size()) return false;
    for (size_t i = 0; i < x.size(); ++i) {
      if (!StructurallyEqual(x[i], y[i])) return false;
    }
    return true;
  }
  return false;  // unknown kinds never match: their calls are recorded anew
}

uint64_t HashIValue(uint64_t seed, const c10::IValue& value) {
  if (value.isInt()) return HashMix(seed, static_cast<uint64_t>(value.toInt()) + 3);
  if (value.isBool()) return HashMix(seed, value.toBool() ? 5 : 6);
  if (value.isString()) return HashMix(seed, std::hash<std::string>()(value.toStringRef()));
  if (value.isDevice()) return HashMix(seed, static_cast<uint64_t>(value.toDevice().index()) + 17);
  if (value.isDouble()) {
    uint64_t bits = 0;
    const double number = value.toDouble();
    std::memcpy(&bits, &number, sizeof bits);
    return HashMix(seed, bits);
  }
  if (value.isList()) {
    for (const auto& element : value.toListRef()) seed = HashIValue(seed, element);
    return HashMix(seed, 19);
  }
  return HashMix(seed, value.isNone() ? 23 : 29);
}

uint64_t HashLayouts(const Call& call) {
  uint64_t hash = 13;
  for (const auto* tensor : call.tensors) hash = tensor == nullptr ? HashMix(hash, 11) : HashLayout(hash, *tensor);
  return hash;
}

void AppendSizes(const Call& call, c10::SmallVectorImpl<int64_t>& out) {
  for (size_t i = 0; i < call.info->args.size(); ++i) {
    const ArgKind kind = call.info->args[i].kind;
    if (kind != ArgKind::kSize && kind != ArgKind::kSizeList) continue;
    const auto& value = call.args[i];
    if (value.isInt()) {
      out.push_back(value.toInt());
    } else if (value.isList()) {
      const auto list = value.toListRef();
      out.push_back(static_cast<int64_t>(list.size()));
      for (const auto& element : list) out.push_back(element.isInt() ? element.toInt() : kAbsentSize);
    } else {
      out.push_back(kAbsentSize);
    }
  }
}

Signature::Signature(const Call& call, const Env& env)
    : info_(call.info), env_(env), tensor_counts_(call.tensor_counts.begin(), call.tensor_counts.end()) {
  for (size_t i = 0; i < info_->args.size(); ++i) {
    const ArgKind kind = info_->args[i].kind;
    if (kind == ArgKind::kStructural) {
      structural_.push_back(call.args[i]);
    } else if (kind == ArgKind::kLateScalar || kind == ArgKind::kLateScalarList) {
      structural_.emplace_back(static_cast<int64_t>(ScalarTag(call.args[i])));
    } else {
      structural_.emplace_back();
    }
  }
  for (const auto* tensor : call.tensors) defined_.push_back(tensor != nullptr);
}

bool Signature::Matches(const Call& call, const Env& env) const {
  if (call.info != info_ || call.tensors.size() != defined_.size() || !(env == env_)) return false;
  for (size_t i = 0; i < info_->args.size(); ++i) {
    if (call.tensor_counts[i] != tensor_counts_[i]) return false;
    switch (info_->args[i].kind) {
      case ArgKind::kStructural:
        if (!StructurallyEqual(structural_[i], call.args[i])) return false;
        break;
      case ArgKind::kLateScalar:
      case ArgKind::kLateScalarList:
        if (structural_[i].toInt() != static_cast<int64_t>(ScalarTag(call.args[i]))) return false;
        break;
      default: break;
    }
  }
  for (size_t i = 0; i < defined_.size(); ++i) {
    if (defined_[i] != (call.tensors[i] != nullptr)) return false;
  }
  return true;
}

const ShapeClass* Signature::FindShapes(const Call& call) {
  c10::SmallVector<int64_t, 16> sizes;
  AppendSizes(call, sizes);
  if (recent_ != nullptr && ShapesMatch(*recent_, call, sizes)) return recent_;
  auto [begin, end] = shapes_.equal_range(HashShapes(call, sizes));
  for (auto it = begin; it != end; ++it) {
    if (ShapesMatch(*it->second, call, sizes)) return recent_ = it->second.get();
  }
  return nullptr;
}

const ShapeClass* Signature::AddShapes(std::unique_ptr<ShapeClass> shapes, const Call& call) {
  c10::SmallVector<int64_t, 16> sizes;
  AppendSizes(call, sizes);
  shapes->sizes.assign(sizes.begin(), sizes.end());
  shapes->inputs.clear();
  for (const auto* tensor : call.tensors) shapes->inputs.push_back(tensor == nullptr ? Geometry{} : Geometry::Of(*tensor));
  shapes->output_count = 0;
  for (const auto& result : shapes->returns) shapes->output_count += result.outputs.size();
  recent_ = shapes.get();
  shapes_.emplace(HashShapes(call, sizes), std::move(shapes));
  return recent_;
}

Signature& SignatureTable::Intern(const Call& call, const Env& env) {
  const uint64_t hash = HashCall(call, env);
  auto [begin, end] = by_hash_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    if (it->second->Matches(call, env)) return *it->second;
  }
  signatures_.push_back(std::make_unique<Signature>(call, env));
  Signature& fresh = *signatures_.back();
  fresh.id = trace::SignatureId{static_cast<uint32_t>(signatures_.size() - 1)};
  by_hash_.emplace(hash, &fresh);
  return fresh;
}

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

// The Meta kernel on `metas`, which it makes; results on the stack. False without such a kernel, or when it refuses.
bool RunMeta(const Call& call, std::vector<at::Tensor>& metas, Stack& stack) {
  if (!call.info->handle.hasComputedKernelForDispatchKey(c10::DispatchKey::Meta) || NamesADevice(call)) return false;
  std::vector<std::pair<const StorageImpl*, c10::Storage>> storages;
  for (const auto* tensor : call.tensors) metas.push_back(tensor == nullptr ? at::Tensor() : MetaLike(*tensor, storages));
  PushMetaArguments(call, metas, stack);
  try {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    call.info->handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), &stack);
  } catch (const std::exception&) {
    return false;  // the recorded run decides; a real error shows itself there
  }
  return true;
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

bool MayResize(const Call& call) {
  if (!call.info->has_out) return false;
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    if (call.writes[i] && call.tensors[i] != nullptr && call.tensors[i]->numel() == 0) return true;
  }
  std::vector<at::Tensor> metas;
  Stack stack;
  if (!RunMeta(call, metas, stack)) return true;
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    if (call.writes[i] && call.tensors[i] != nullptr && metas[i].sizes() != call.tensors[i]->sizes()) return true;
  }
  return false;
}

std::unique_ptr<ShapeClass> InferShapes(const Call& call) {
  std::vector<at::Tensor> metas;
  Stack stack;
  if (!RunMeta(call, metas, stack)) return nullptr;
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
