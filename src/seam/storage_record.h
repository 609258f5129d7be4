#pragma once
// The record that hangs behind a storage with pending work. It lives in the context of the StorageImpl's DataPtr, so any
// alias of the storage finds it in two loads.
//
// Two kinds:
//   token    storage of a placeholder: empty from birth, filled when somebody needs the bytes
//   wrapped  storage of a plain tensor the program owns: its DataPtr moved into the record, the data pointer unchanged

#include <c10/core/Storage.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <cstdint>

#include "base/free_list.h"
#include "trace/op_record.h"

namespace outrider::seam {

class StorageRecord final : public c10::intrusive_ptr_target, public base::FreeListed<StorageRecord> {
 public:
  // Queue sequence number of the last job that reads or writes the storage. Written by the imperative thread.
  std::atomic<uint64_t> last_use{0};
  // Raw accesses exist (or may exist): every job that touches the storage completes before its handler returns.
  std::atomic<bool> synchronous{false};
  std::atomic<bool> filled{true};
  bool is_token = false;
  bool escaped_for_good = false;  // a raw pointer may live on; never asynchronous again

  // The storage the graph runner computes on. Token: set by the job that produces the value. Wrapped: an alias of the bytes.
  c10::Storage real;
  c10::DataPtr original;  // wrapped only: owner of the bytes
  bool borrowed = false;  // token: `real` is a buffer that the next launch of a device graph overwrites

  // Data flow inside a step (imperative thread only).
  uint64_t writer_step = 0;
  trace::NodeId writer;
  uint32_t writer_output = 0;
  uint64_t created_step = 0;
  uint64_t first_external_step = 0;
  uint32_t persistent_id = 0;

  // The outer-lane step that made this token or was fed this storage, and the slot it has there.
  uint64_t outer_step = 0;
  int32_t outer_slot = -1;
  // The log of the outer lane whose events read parts of the storage where they are.
  uint64_t viewed_in_log = 0;

  void release_resources() override;
};

using RecordPtr = c10::intrusive_ptr<StorageRecord>;

// nullptr for storages without a record.
StorageRecord* RecordOf(const c10::StorageImpl* storage);
inline StorageRecord* RecordOf(const c10::TensorImpl& tensor) {
  return RecordOf(tensor.unsafe_storage().unsafeGetStorageImpl());
}

// A new empty storage of `nbytes` on `device` with its record.
c10::Storage MakeToken(size_t nbytes, c10::Device device, StorageRecord** record);

// Gives a plain storage a record. False when its memory belongs to somebody else (numpy, shared memory, copy on write).
bool WrapStorage(const c10::Storage& storage);

// Bytes of a wrapped storage as a storage of their own. It keeps the record, and with it the bytes.
c10::Storage SliceStorage(const RecordPtr& record, size_t first, size_t count);

// Makes the bytes of a ready token visible through its storage. Thread-safe, idempotent.
void FillToken(c10::StorageImpl* storage, StorageRecord& record);

// The graph runner hands a value over that stays in a device graph's buffer for now.
void LendBytes(StorageRecord& record, const c10::Storage& buffer);

// The graph runner has written to `buffer` again, which the value was taken from.
void RefreshBytes(StorageRecord& record, const c10::Storage& buffer);

// A value that still lives in a device graph's buffer gets bytes of its own. Thread-safe, idempotent.
void OwnBytes(StorageRecord& record);

// Checks at load that the data pointer of a StorageImpl can be set on its own; false switches to the library's setter.
bool ProbeDataPointerLayout();

}  // namespace outrider::seam
