#include "seam/settle.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>

#include <array>
#include <cstring>

namespace outrider::seam {
namespace {

Settler* g_settler = nullptr;
std::atomic<bool> g_uncommitted{false};
thread_local bool t_on_runner = false;
thread_local int t_handler_depth = 0;
thread_local bool t_learning = false;

constexpr int kCallSitesMax = 16;
std::array<void*, kCallSitesMax> g_call_sites{};
std::atomic<int> g_call_site_count{0};

bool IsLearnt(void* call_site) {
  const int count = g_call_site_count.load(std::memory_order_acquire);
  for (int i = 0; i < count; ++i) {
    if (g_call_sites[i] == call_site) return true;
  }
  return false;
}

void Learn(void* call_site) {
  const int count = g_call_site_count.load(std::memory_order_relaxed);
  if (IsLearnt(call_site) || count == kCallSitesMax) return;
  g_call_sites[count] = call_site;
  g_call_site_count.store(count + 1, std::memory_order_release);
}

// A storage object of Python shows up in the storage's use count, so the end of such an access can be seen later. Every
// other raw access may leave a bare pointer behind.
bool LeavesTrace(void* call_site) {
  Dl_info info{};
  if (dladdr(call_site, &info) == 0 || info.dli_sname == nullptr) return false;
  return std::strstr(info.dli_sname, "torch8autograd") != nullptr && std::strstr(info.dli_sname, "storage") != nullptr;
}

void MarkEscaped(StorageRecord& record, void* call_site) {
  record.synchronous.store(true, std::memory_order_release);
  if (!LeavesTrace(call_site)) record.escaped_for_good = true;
}

void Complete(c10::StorageImpl* storage, StorageRecord& record, bool raw) {
  if (g_settler != nullptr) {
    if (g_uncommitted.load(std::memory_order_acquire)) g_settler->SettleUncommitted(record);
    const uint64_t sequence = record.last_use.load(std::memory_order_acquire);
    g_settler->WaitFor(sequence);
    if (raw) g_settler->CountRawAccess(true);
  }
  // The outer lane may have replaced what stands behind the storage.
  if (record.is_token && !record.filled.load(std::memory_order_acquire)) FillToken(storage, record);
}

}  // namespace

void SetUncommittedWork(bool pending) { g_uncommitted.store(pending, std::memory_order_release); }

void InstallSettler(Settler* settler) { g_settler = settler; }

void Settle(c10::StorageImpl* storage, void* call_site) {
  if (t_on_runner) return;
  StorageRecord* record = RecordOf(storage);
  if (record == nullptr) return;
  if (t_learning && t_handler_depth == 0) Learn(call_site);
  const bool raw = t_handler_depth == 0 && !IsLearnt(call_site) && !at::in_parallel_region();
  if (t_handler_depth == 0 && !raw && IsLearnt(call_site)) return;
  RecordPtr keep = RecordPtr::reclaim_copy(record);
  if (raw) MarkEscaped(*record, call_site);
  Complete(storage, *record, raw);
}

void SettleTensor(const c10::TensorImpl& tensor) {
  auto* storage = tensor.unsafe_storage().unsafeGetStorageImpl();
  StorageRecord* record = RecordOf(storage);
  if (record == nullptr) return;
  RecordPtr keep = RecordPtr::reclaim_copy(record);
  Complete(storage, *record, /*raw=*/false);
}

OnGraphRunner::OnGraphRunner() { t_on_runner = true; }
OnGraphRunner::~OnGraphRunner() { t_on_runner = false; }
bool IsGraphRunnerThread() { return t_on_runner; }

HandlerDepth::HandlerDepth() { ++t_handler_depth; }
HandlerDepth::~HandlerDepth() { --t_handler_depth; }
int HandlerDepth::Current() { return t_handler_depth; }

LearnCallSites::LearnCallSites() { t_learning = true; }
LearnCallSites::~LearnCallSites() { t_learning = false; }
int LearntCallSites() { return g_call_site_count.load(std::memory_order_acquire); }

}  // namespace outrider::seam
