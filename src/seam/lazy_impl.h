#pragma once
// The tensor whose bytes may arrive later.
//
// LazyImpl adds no members to TensorImpl: it overrides the virtual gate in front of all data accessors. Placeholders are
// built as LazyImpl; plain tensors of the program become one by graft (their vptr is overwritten), which keeps the object,
// its version counter, hooks, .grad, weak references and live graphs. The graft is verified at load.

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>

namespace outrider::seam {

class LazyImpl : public c10::TensorImpl {
 public:
  LazyImpl(c10::Storage&& storage, c10::DispatchKeySet keys, caffe2::TypeMeta dtype);
  // A view of a tensor with the key set `keys` (keeps inference tensors inference tensors).
  LazyImpl(ImplType view, c10::Storage&& storage, c10::DispatchKeySet keys, caffe2::TypeMeta dtype);

  bool has_storage() const override;
  const c10::Storage& storage() const override;
  c10::intrusive_ptr<TensorImpl> shallow_copy_and_detach(const c10::VariableVersion& version,
                                                         bool allow_tensor_metadata_change) const override;
  c10::intrusive_ptr<TensorImpl> shallow_copy_and_detach(c10::VariableVersion&& version,
                                                         bool allow_tensor_metadata_change) const override;
  void shallow_copy_from(const c10::intrusive_ptr<TensorImpl>& source) override;

  // The storage without completing it.
  const c10::Storage& Token() const { return storage_; }
  void ReplaceStorage(c10::Storage storage) { storage_ = std::move(storage); }

 private:
  template <typename Version>
  c10::intrusive_ptr<TensorImpl> Copy(Version&& version, bool allow_change) const;
};

enum class ImplKind { kPlain, kLazy, kOuterPlaceholder, kOther };
ImplKind KindOf(const c10::TensorImpl& tensor);

// What becomes of a plain tensor of the program when it takes part.
enum class GraftMode {
  kGrafted,      // it gets the lazy vtable, and with it the gate
  kSynchronous,  // it stays plain: every job that touches its storage completes before its handler returns
  kUngated,      // it stays plain and nothing waits: negative control
};

// Prepares a tensor to take part: its storage gets a record, a plain object becomes what the graft mode says. False:
// memory of somebody else or a foreign subclass. Idempotent.
bool Graft(c10::TensorImpl& tensor);
// The object only, for a new alias of a storage that has a record already.
void GateAlias(c10::TensorImpl& tensor);

// Verifies size, alignment and one write-read round trip of the graft. Where that fails, kSynchronous stands for
// kGrafted.
void ProbeGraft();
// A plain tensor that has been grafted: every raw access to it passes the gate.
at::Tensor GraftedProbe();
void SetGraftMode(GraftMode mode);
GraftMode CurrentGraftMode();

}  // namespace outrider::seam
