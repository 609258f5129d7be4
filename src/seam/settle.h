#pragma once
// What happens when code asks for the bytes of a lazy tensor.

#include <c10/core/Storage.h>
#include <c10/core/StorageImpl.h>

#include <cstdint>

#include "seam/storage_record.h"

namespace outrider::seam {

enum class Access : uint8_t {
  kHandler,    // by a kernel that this library called: no pointer is left behind
  kKernel,     // by a kernel that the program called outside of any step: the same
  kRead,       // by code outside that reads at once
  kCounted,    // by code outside that may write, and leaves a count on the storage
  kRaw,        // by code outside that may write, and keep the pointer
};

// The waiting side of the work queue, and the outer lane's veto. Installed once by the session.
class Settler {
 public:
  virtual ~Settler() = default;
  // Returns when job `sequence` is complete; throws a deferred error.
  virtual void WaitFor(uint64_t sequence) = 0;
  // The record belongs to a step that has not been committed: launch up to it, or diverge.
  virtual void SettleUncommitted(StorageRecord& record, Access access) = 0;
  virtual void CountRawAccess(bool waited) = 0;
};
void InstallSettler(Settler* settler);

// True while a step is covered, but not while it is replayed: every access asks the settler first.
void SetStepCovered(bool covered);

// Completes pending work on `storage` for the caller at `call_site`. Runs on any thread; no-op on the graph runner.
void Settle(c10::StorageImpl* storage, void* call_site);
// The same for code of this library: never an escape.
void SettleTensor(const c10::TensorImpl& tensor);
// Before the storage of a tensor is replaced behind the dispatcher's back.
void SettleForReplacement(const c10::TensorImpl& tensor);
// The bare address of a storage is given away, by a call that names it: who has it may use it from now on, for good, whoever
// else holds the storage now.
void SettleForAddress(const c10::Storage& storage);
// A storage whose escape can be seen to be over becomes asynchronous again.
void RelaxEscape(const c10::Storage& storage, StorageRecord& record);

// What runs inside looks at sizes and strides only: nothing is waited for.
class LooksAtMetadataOnly {
 public:
  LooksAtMetadataOnly();
  ~LooksAtMetadataOnly();
};

// Marks the thread as the graph runner (never settles).
class OnGraphRunner {
 public:
  OnGraphRunner();
  ~OnGraphRunner();
};
bool IsGraphRunnerThread();

// Inside a handler: accesses belong to kernels this library called and leave no pointer behind.
class HandlerDepth {
 public:
  HandlerDepth();
  ~HandlerDepth();
  static int Current();
};

// Call sites inside the autograd engine ask for a storage without reading it. They are learnt at load by one known
// backward pass and then answered without waiting.
class LearnCallSites {
 public:
  enum class Kind { kEngine, kRead, kCounted };  // the two of `Access` that leave no bare pointer behind
  explicit LearnCallSites(Kind kind = Kind::kEngine);
  ~LearnCallSites();
};
int LearntCallSites();
// Learns those of the engine: one forward and backward pass with a value that gets several gradients. The inner lane must
// be active on this thread.
void LearnEngineCallSites();

}  // namespace outrider::seam
