#include "seam/storage_record.h"

#include <c10/core/CPUAllocator.h>

#include <mutex>

#include "seam/backend.h"
#include "seam/storage_copy.h"
#include "seam/torch_adapter.h"

namespace outrider::seam {
namespace {

std::atomic<uint32_t> g_next_persistent_id{1};
std::mutex g_fill_mutex;
std::mutex g_wrap_mutex;
bool g_data_pointer_is_first = false;

void ReleaseRecord(void* context) {
  c10::raw::intrusive_ptr::decref(static_cast<c10::intrusive_ptr_target*>(context));
}

c10::DataPtr PointerWithRecord(void* data, StorageRecord* record, c10::Device device) {
  auto* target = static_cast<c10::intrusive_ptr_target*>(record);
  c10::raw::intrusive_ptr::incref(target);
  return c10::DataPtr(data, target, &ReleaseRecord, device);
}

class TokenStorage final : public c10::StorageImpl, public base::FreeListed<TokenStorage> {
 public:
  using c10::StorageImpl::StorageImpl;
};

c10::Storage MakeStorage(size_t nbytes, c10::DataPtr pointer, c10::Allocator* allocator) {
  return c10::Storage(c10::make_intrusive<TokenStorage>(c10::StorageImpl::use_byte_size_t(), c10::SymInt(static_cast<int64_t>(nbytes)),
                                                        std::move(pointer), allocator, /*resizable=*/true));
}

// c10::DataPtr keeps the data pointer as its first word; everything else stays as it is, so that concurrent look-ups of the
// record never see a torn state.
void StoreDataPointer(c10::StorageImpl* storage, void* data, StorageRecord& record) {
  auto& pointer = storage->_mutable_data_ptr_no_checks();
  if (g_data_pointer_is_first) {
    std::atomic_ref<void*>(*reinterpret_cast<void**>(&pointer)).store(data, std::memory_order_release);
  } else {
    storage->set_data_ptr_noswap(PointerWithRecord(data, &record, storage->device()));
  }
}

void OwnBytesLocked(StorageRecord& record) {
  if (!record.borrowed) return;
  record.real = CopyStorage(record.real);
  record.borrowed = false;
}

}  // namespace

void StorageRecord::release_resources() {
  real = c10::Storage();
  original.clear();
}

StorageRecord* RecordOf(const c10::StorageImpl* storage) {
  if (storage == nullptr) return nullptr;
  const auto& pointer = const_cast<c10::StorageImpl*>(storage)->_mutable_data_ptr_no_checks();
  if (pointer.get_deleter() != &ReleaseRecord) return nullptr;
  return static_cast<StorageRecord*>(static_cast<c10::intrusive_ptr_target*>(pointer.get_context()));
}

c10::Storage MakeToken(size_t nbytes, c10::Device device, StorageRecord** record) {
  auto fresh = c10::make_intrusive<StorageRecord>();
  fresh->is_token = true;
  fresh->filled.store(false, std::memory_order_relaxed);
  fresh->persistent_id = g_next_persistent_id.fetch_add(1, std::memory_order_relaxed);
  *record = fresh.get();
  return MakeStorage(nbytes, PointerWithRecord(nullptr, fresh.get(), device), AllocatorOf(device));
}

bool WrapStorage(const c10::Storage& storage) {
  auto* impl = storage.unsafeGetStorageImpl();
  const std::lock_guard<std::mutex> lock(g_wrap_mutex);  // another thread may ask for the address meanwhile
  if (RecordOf(impl) != nullptr) return true;
  auto& pointer = impl->_mutable_data_ptr_no_checks();
  if (!OwnedByAllocator(pointer) || HasMaterializer(*impl)) return false;
  auto record = c10::make_intrusive<StorageRecord>();
  record->persistent_id = g_next_persistent_id.fetch_add(1, std::memory_order_relaxed);
  record->synchronous.store(!HeldOnce(*impl), std::memory_order_relaxed);
  void* data = pointer.mutable_get();
  const auto device = impl->device();
  record->real = MakeStorage(impl->nbytes(), c10::DataPtr(data, device), AllocatorOf(device));
  record->original = std::move(pointer);
  impl->set_data_ptr_noswap(PointerWithRecord(data, record.get(), device));
  return true;
}

c10::Storage SliceStorage(const RecordPtr& record, size_t first, size_t count) {
  const auto device = record->real.device();
  auto* start = static_cast<char*>(const_cast<void*>(record->real.data())) + first;
  auto* owner = new RecordPtr(record);
  c10::DataPtr pointer(start, owner, [](void* context) { delete static_cast<RecordPtr*>(context); }, device);
  return c10::Storage(c10::Storage::use_byte_size_t(), count, std::move(pointer), AllocatorOf(device), /*resizable=*/false);
}

void FillToken(c10::StorageImpl* storage, StorageRecord& record) {
  std::lock_guard<std::mutex> lock(g_fill_mutex);
  if (record.filled.load(std::memory_order_relaxed)) return;
  TORCH_CHECK(record.real, "outrider: a value was read that no job has produced (its step was cancelled by an error)");
  OwnBytesLocked(record);
  StoreDataPointer(storage, const_cast<void*>(record.real.data()), record);
  record.filled.store(true, std::memory_order_release);
}

void LendBytes(StorageRecord& record, const c10::Storage& buffer) {
  std::lock_guard<std::mutex> lock(g_fill_mutex);
  record.real = buffer;
  record.borrowed = true;
}

void RefreshBytes(StorageRecord& record, const c10::Storage& buffer) {
  std::lock_guard<std::mutex> lock(g_fill_mutex);
  if (record.real && record.real.data() != buffer.data()) OverwriteStorage(record.real, buffer);
}

void OwnBytes(StorageRecord& record) {
  std::lock_guard<std::mutex> lock(g_fill_mutex);
  OwnBytesLocked(record);
}

bool ProbeDataPointerLayout() {
  g_data_pointer_is_first = false;
  StorageRecord* record = nullptr;
  auto token = MakeToken(8, c10::kCPU, &record);
  int64_t word = 0;
  auto& pointer = token.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks();
  *reinterpret_cast<void**>(&pointer) = &word;
  const bool reads_back = pointer.get() == &word && RecordOf(token.unsafeGetStorageImpl()) == record;
  *reinterpret_cast<void**>(&pointer) = nullptr;
  g_data_pointer_is_first = reads_back && pointer.get() == nullptr;
  return g_data_pointer_is_first;
}

}  // namespace outrider::seam
