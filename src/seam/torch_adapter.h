#pragma once
// The one place that knows how the supported torch minors differ.

#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>
#include <torch/csrc/autograd/function.h>
#include <torch/headeronly/version.h>

#include <string>

#if TORCH_VERSION_MAJOR != 2 || (TORCH_VERSION_MINOR != 11 && TORCH_VERSION_MINOR != 13)
#error "outrider supports torch 2.11 and 2.13"
#endif

namespace outrider::seam {

// True when the storage is copy-on-write or fills itself on first mutable access (2.13 and later).
inline bool HasMaterializer(const c10::StorageImpl& storage) {
#if TORCH_VERSION_MINOR >= 12
  return storage.has_materializer();
#else
  (void)storage;
  return false;
#endif
}

// True where all references to the tensor are `count` known ones of C++: no other is there, and none of Python. Its Python
// object, where it has one, counts once, and is held by C++ alone then. "No" where torch does not tell.
inline bool HeldOnlyBy(const c10::TensorImpl& tensor, size_t count) {
  const size_t references = c10::raw::intrusive_ptr::use_count(const_cast<c10::TensorImpl*>(&tensor));
#if TORCH_VERSION_MINOR >= 12
  const auto* python = tensor.pyobj_slot();
  if (python->load_pyobj() == nullptr) return references == count;
  return references == count + 1 && python->has_unique_reference();
#else
  (void)references, (void)count;
  return false;
#endif
}

// True where nothing but one tensor of C++ has the storage: no other one, and no storage object that Python holds. From 2.12
// on such an object stays when Python has dropped it, and counts once.
inline bool HeldOnce(const c10::StorageImpl& storage) {
  const size_t references = c10::raw::intrusive_ptr::use_count(const_cast<c10::StorageImpl*>(&storage));
#if TORCH_VERSION_MINOR >= 12
  const auto* python = storage.pyobj_slot();
  if (python->load_pyobj() != nullptr) return references == 2 && python->has_unique_reference();
#endif
  return references == 1;
}

// Nodes are shared_ptr up to 2.12 and intrusive afterwards.
#if TORCH_VERSION_MINOR >= 12
template <typename NodeType>
using NodePtr = c10::intrusive_ptr<NodeType>;
using WeakNode = c10::weak_intrusive_ptr<torch::autograd::Node>;
inline WeakNode EmptyWeakNode() { return WeakNode(c10::intrusive_ptr<torch::autograd::Node>()); }
#else
template <typename NodeType>
using NodePtr = std::shared_ptr<NodeType>;
using WeakNode = std::weak_ptr<torch::autograd::Node>;
inline WeakNode EmptyWeakNode() { return {}; }
#endif
template <typename NodePtr>
WeakNode WeakNodeOf(const NodePtr& node) {
  return node ? WeakNode(node) : EmptyWeakNode();
}

template <typename NodeType, typename... Args>
NodePtr<NodeType> MakeNode(Args&&... args) {
#if TORCH_VERSION_MINOR >= 12
  return c10::make_intrusive<NodeType>(std::forward<Args>(args)...);
#else
  return std::shared_ptr<NodeType>(new NodeType(std::forward<Args>(args)...), torch::autograd::deleteNode);
#endif
}

}  // namespace outrider::seam
