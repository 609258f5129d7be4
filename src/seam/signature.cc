#include "seam/signature.h"

#include <c10/util/Exception.h>

#include <cstring>

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

}  // namespace outrider::seam
