#include "seam/settle.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/sum.h>

#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <array>

#include "seam/backend.h"
#include "seam/gil.h"
#include "seam/kernel_code.h"
#include "seam/torch_adapter.h"

namespace outrider::seam {
namespace {

Settler* g_settler = nullptr;
std::atomic<bool> g_covered{false};
thread_local bool t_on_runner = false;
thread_local int t_handler_depth = 0;
thread_local int t_metadata_depth = 0;

// Return addresses of known callers. Written while learning, read by any thread.
class CallSites {
 public:
  bool Has(void* site) const {
    const int count = count_.load(std::memory_order_acquire);
    return std::find(sites_.begin(), sites_.begin() + count, site) != sites_.begin() + count;
  }
  void Add(void* site) {
    const int count = count_.load(std::memory_order_relaxed);
    if (Has(site) || count == kMax) return;
    sites_[count] = site;
    count_.store(count + 1, std::memory_order_release);
  }
  int Count() const { return count_.load(std::memory_order_acquire); }

 private:
  static constexpr int kMax = 32;
  std::array<void*, kMax> sites_{};
  std::atomic<int> count_{0};
};

CallSites g_engine_sites;
CallSites g_read_sites;
CallSites g_counted_sites;
thread_local CallSites* t_learning = nullptr;

// A tensor that shares the storage with others, and a storage object of Python, show up in the storage's use count, so the
// end of such an access can be seen later. Any other raw access may leave a bare pointer behind.
void MarkEscaped(const c10::StorageImpl* storage, StorageRecord& record, Access access) {
  record.synchronous.store(true, std::memory_order_release);
  if (access == Access::kRaw && HeldOnce(*storage)) record.escaped_for_good = true;
}

// Torch's kernels run below autograd. What they read or write is done when they return, or ordered by the device's streams,
// and they keep no pointer; but a graph that is being captured keeps it. In inference mode all code looks the same.
bool IsKernel(const void* call_site, c10::Device device) {
  const bool below_autograd = c10::impl::tls_local_dispatch_key_set().excluded_.has_any(c10::autograd_dispatch_keyset);
  return below_autograd && !c10::InferenceMode::is_enabled() && InKernelLibrary(call_site) && !StreamIsCaptured(device);
}

// Of code outside of handlers.
Access AccessOf(void* call_site, c10::Device device) {
  if (g_read_sites.Has(call_site)) return Access::kRead;
  if (g_counted_sites.Has(call_site)) return Access::kCounted;
  if (IsKernel(call_site, device)) return Access::kKernel;
  return KnownReaderAsks() ? Access::kRead : Access::kRaw;
}

void Complete(c10::StorageImpl* storage, StorageRecord& record, Access access) {
  if (g_settler != nullptr) {
    if (g_covered.load(std::memory_order_acquire)) g_settler->SettleUncommitted(record, access);
    const uint64_t sequence = record.last_use.load(std::memory_order_acquire);
    g_settler->WaitFor(sequence);
    if (access == Access::kRaw) g_settler->CountRawAccess(true);
  }
  // The outer lane may have replaced what stands behind the storage.
  if (record.is_token && !record.filled.load(std::memory_order_acquire)) FillToken(storage, record);
}

void CompleteTensor(const c10::TensorImpl& tensor, Access access) {
  auto* storage = tensor.unsafe_storage().unsafeGetStorageImpl();
  StorageRecord* record = RecordOf(storage);
  if (record == nullptr) return;
  RecordPtr keep = RecordPtr::reclaim_copy(record);
  Complete(storage, *record, access);
}

}  // namespace

void SetStepCovered(bool covered) { g_covered.store(covered, std::memory_order_release); }

void InstallSettler(Settler* settler) { g_settler = settler; }

void Settle(c10::StorageImpl* storage, void* call_site) {
  if (t_on_runner || t_metadata_depth > 0) return;
  StorageRecord* record = RecordOf(storage);
  if (record == nullptr) return;
  const bool outside = t_handler_depth == 0;
  if (outside && t_learning != nullptr) t_learning->Add(call_site);
  if (outside && g_engine_sites.Has(call_site)) return;
  const bool raw = outside && !at::in_parallel_region();
  RecordPtr keep = RecordPtr::reclaim_copy(record);
  const Access access = raw ? AccessOf(call_site, storage->device()) : Access::kHandler;
  if (raw && access != Access::kKernel) MarkEscaped(storage, *record, access);
  Complete(storage, *record, access);
}

void SettleTensor(const c10::TensorImpl& tensor) { CompleteTensor(tensor, Access::kHandler); }
void SettleForReplacement(const c10::TensorImpl& tensor) {
  CompleteTensor(tensor, t_handler_depth == 0 ? Access::kRaw : Access::kHandler);
}

void SettleForAddress(const c10::Storage& storage) {
  auto* impl = storage.unsafeGetStorageImpl();
  if (RecordOf(impl) == nullptr && !WrapStorage(storage)) return;  // memory of somebody else, which each reader copies
  const RecordPtr record = RecordPtr::reclaim_copy(RecordOf(impl));
  record->escaped_for_good = true;
  record->synchronous.store(true, std::memory_order_release);
  Complete(impl, *record, Access::kRaw);
}

void RelaxEscape(const c10::Storage& storage, StorageRecord& record) {
  if (!record.synchronous.load(std::memory_order_relaxed) || record.escaped_for_good || !HeldOnce(*storage.unsafeGetStorageImpl())) return;
  record.synchronous.store(false, std::memory_order_release);
}

OnGraphRunner::OnGraphRunner() { t_on_runner = true; }
OnGraphRunner::~OnGraphRunner() { t_on_runner = false; }
bool IsGraphRunnerThread() { return t_on_runner; }

LooksAtMetadataOnly::LooksAtMetadataOnly() { ++t_metadata_depth; }
LooksAtMetadataOnly::~LooksAtMetadataOnly() { --t_metadata_depth; }

HandlerDepth::HandlerDepth() { ++t_handler_depth; }
HandlerDepth::~HandlerDepth() { --t_handler_depth; }
int HandlerDepth::Current() { return t_handler_depth; }

LearnCallSites::LearnCallSites(Kind kind) {
  t_learning = kind == Kind::kEngine ? &g_engine_sites : kind == Kind::kRead ? &g_read_sites : &g_counted_sites;
}
LearnCallSites::~LearnCallSites() { t_learning = nullptr; }
int LearntCallSites() { return g_engine_sites.Count(); }

void LearnEngineCallSites() {
  const c10::InferenceMode not_inference(false);  // whatever the program was at when it asked for the first time
  const at::AutoGradMode with_gradients(true);
  at::Tensor x = at::ones({4, 4}).requires_grad_();
  at::Tensor y = at::mul(x, x);
  at::Tensor loss = at::sum(at::add(at::add(at::sin(y), at::cos(y)), at::exp(y)));
  GilRelease without_lock;
  LearnCallSites learning;
  loss.backward();
}

}  // namespace outrider::seam
