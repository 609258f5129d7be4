#include "seam/lazy_impl.h"

#include <ATen/ops/ones.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include "seam/keys.h"
#include "seam/outer_placeholder.h"
#include "seam/settle.h"
#include "seam/storage_record.h"

namespace outrider::seam {
namespace {

using c10::TensorImpl;

bool g_graft_works = false;
GraftMode g_graft_mode = GraftMode::kSynchronous;

// Under a dispatch mode, and for subclasses with __torch_dispatch__, a copy is a `detach` that Python code sees.
bool PythonSeesCopies(c10::DispatchKeySet keys) {
  return (c10::impl::TorchDispatchModeTLS::stack_len() > 0 || keys.has(c10::DispatchKey::Python)) &&
         !c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::Python);
}

const void* VtableOf(const TensorImpl& tensor) { return *reinterpret_cast<const void* const*>(&tensor); }
void SetVtable(TensorImpl& tensor, const void* vtable) { *reinterpret_cast<const void**>(&tensor) = vtable; }

struct Vtables {
  const void* plain;
  const void* lazy;
  const void* outer;
};

const Vtables& KnownVtables() {
  static const Vtables tables = [] {
    auto storage = [] {
      return c10::Storage(c10::Storage::use_byte_size_t(), 0, c10::DataPtr(nullptr, c10::kCPU), c10::GetCPUAllocator(), true);
    };
    const auto dtype = caffe2::TypeMeta::Make<float>();
    const c10::DispatchKeySet keys(c10::DispatchKey::CPU);
    auto plain = c10::make_intrusive<TensorImpl>(storage(), keys, dtype);
    auto lazy = c10::make_intrusive<LazyImpl>(storage(), keys, dtype);
    auto outer = c10::make_intrusive<OuterPlaceholder>(storage(), keys, dtype, nullptr, 0);
    return Vtables{VtableOf(*plain), VtableOf(*lazy), VtableOf(*outer)};
  }();
  return tables;
}

}  // namespace

static_assert(sizeof(LazyImpl) == sizeof(c10::TensorImpl), "the graft needs a subclass of equal size");
static_assert(alignof(LazyImpl) == alignof(c10::TensorImpl), "the graft needs a subclass of equal alignment");

LazyImpl::LazyImpl(c10::Storage&& storage, c10::DispatchKeySet keys, caffe2::TypeMeta dtype)
    : TensorImpl(std::move(storage), keys, dtype) {}

LazyImpl::LazyImpl(ImplType view, c10::Storage&& storage, c10::DispatchKeySet keys, caffe2::TypeMeta dtype)
    : TensorImpl(view, std::move(storage), keys, dtype) {}

__attribute__((noinline)) bool LazyImpl::has_storage() const {
  Settle(storage_.unsafeGetStorageImpl(), __builtin_return_address(0));
  return static_cast<bool>(storage_);
}

__attribute__((noinline)) const c10::Storage& LazyImpl::storage() const {
  Settle(storage_.unsafeGetStorageImpl(), __builtin_return_address(0));
  return storage_;
}

template <typename Version>
c10::intrusive_ptr<TensorImpl> LazyImpl::Copy(Version&& version, bool allow_change) const {
  auto copy = c10::make_intrusive<LazyImpl>(c10::Storage(storage_), key_set_, data_type_);
  copy_tensor_metadata(this, copy.get(), std::forward<Version>(version), allow_change);
  copy->refresh_numel();
  copy->refresh_contiguous();
  return copy;
}

c10::intrusive_ptr<TensorImpl> LazyImpl::shallow_copy_and_detach(const c10::VariableVersion& version, bool allow) const {
  if (PythonSeesCopies(key_set_)) return TensorImpl::shallow_copy_and_detach(version, allow);
  return Copy(version, allow);
}

c10::intrusive_ptr<TensorImpl> LazyImpl::shallow_copy_and_detach(c10::VariableVersion&& version, bool allow) const {
  if (PythonSeesCopies(key_set_)) return TensorImpl::shallow_copy_and_detach(std::move(version), allow);
  return Copy(std::move(version), allow);
}

// `x.data = source`: the object takes over the source's storage, and with it the source's record.
void LazyImpl::shallow_copy_from(const c10::intrusive_ptr<TensorImpl>& source) {
  SettleForReplacement(*source);
  SettleForReplacement(*this);
  TensorImpl::shallow_copy_from(source);
}

ImplKind KindOf(const TensorImpl& tensor) {
  const void* vtable = VtableOf(tensor);
  const Vtables& known = KnownVtables();
  if (vtable == known.plain) return ImplKind::kPlain;
  if (vtable == known.lazy) return ImplKind::kLazy;
  if (vtable == known.outer) return ImplKind::kOuterPlaceholder;
  return ImplKind::kOther;
}

bool Graft(TensorImpl& tensor) {
  const ImplKind kind = KindOf(tensor);
  if (kind == ImplKind::kOther) return false;
  const auto& storage = tensor.unsafe_storage();
  if (!storage) return false;
  if (RecordOf(storage.unsafeGetStorageImpl()) == nullptr && !WrapStorage(storage)) return false;
  if (kind == ImplKind::kPlain) GateAlias(tensor);
  return true;
}

void GateAlias(TensorImpl& tensor) {
  if (KindOf(tensor) != ImplKind::kPlain) return;
  if (g_graft_mode == GraftMode::kGrafted) SetVtable(tensor, KnownVtables().lazy);
  if (g_graft_mode != GraftMode::kSynchronous) return;
  StorageRecord& record = *RecordOf(tensor);
  record.synchronous.store(true, std::memory_order_release);
  record.escaped_for_good = true;
}

void ProbeGraft() {
  auto storage = c10::Storage(c10::Storage::use_byte_size_t(), 16, c10::GetCPUAllocator()->allocate(16), c10::GetCPUAllocator(), true);
  auto probe = c10::make_intrusive<TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                               caffe2::TypeMeta::Make<float>());
  probe->set_sizes_contiguous({4});
  const auto* before = probe->unsafe_storage().data();
  SetVtable(*probe, KnownVtables().lazy);
  const bool works = KindOf(*probe) == ImplKind::kLazy && probe->numel() == 4 && probe->has_storage() &&
                     probe->storage().data() == before && probe->shallow_copy_and_detach(c10::VariableVersion(0), true) != nullptr;
  SetVtable(*probe, KnownVtables().plain);
  g_graft_works = works;
}

at::Tensor GraftedProbe() {
  LanesOff off;
  at::Tensor probe = at::ones({4});
  Graft(*probe.unsafeGetTensorImpl());
  return probe;
}

void SetGraftMode(GraftMode mode) {
  g_graft_mode = mode == GraftMode::kGrafted && !g_graft_works ? GraftMode::kSynchronous : mode;
}
GraftMode CurrentGraftMode() { return g_graft_mode; }

}  // namespace outrider::seam
