// Tokens, wrapped storages, and values that live in a buffer for a while.

#include "seam/storage_record.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

namespace outrider::seam {
namespace {

c10::Storage StorageWith(const std::vector<int64_t>& values) {
  return torch::tensor(values).unsafeGetTensorImpl()->unsafe_storage();
}

int64_t First(const c10::Storage& storage) { return *static_cast<const int64_t*>(storage.data()); }

struct Lent {
  c10::Storage token, buffer;
  StorageRecord* record = nullptr;
};

// A value that stays in a buffer for now.
Lent LentValue(const std::vector<int64_t>& values) {
  Lent lent;
  lent.token = MakeToken(values.size() * sizeof(int64_t), c10::kCPU, &lent.record);
  lent.buffer = StorageWith(values);
  LendBytes(*lent.record, lent.buffer);
  return lent;
}

TEST(StorageRecord, TokenIsEmptyUntilItIsFilled) {
  StorageRecord* record = nullptr;
  const c10::Storage token = MakeToken(16, c10::kCPU, &record);
  EXPECT_EQ(RecordOf(token.unsafeGetStorageImpl()), record);
  EXPECT_TRUE(record->is_token);
  EXPECT_EQ(token.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get(), nullptr);

  record->real = StorageWith({7, 8});
  FillToken(token.unsafeGetStorageImpl(), *record);
  EXPECT_EQ(First(token), 7);
  EXPECT_EQ(token.data(), record->real.data());
  EXPECT_EQ(RecordOf(token.unsafeGetStorageImpl()), record) << "filled tokens keep their record";
}

TEST(StorageRecord, FillingWithoutAValueSaysSo) {
  StorageRecord* record = nullptr;
  const c10::Storage token = MakeToken(8, c10::kCPU, &record);
  EXPECT_THROW(FillToken(token.unsafeGetStorageImpl(), *record), c10::Error);
}

TEST(StorageRecord, SliceShowsTheBytesInPlaceAndKeepsThem) {
  at::Tensor whole = torch::tensor(std::vector<int64_t>{1, 2, 3, 4});
  const c10::Storage& storage = whole.unsafeGetTensorImpl()->unsafe_storage();
  ASSERT_TRUE(WrapStorage(storage));
  auto* first = static_cast<int64_t*>(storage.mutable_data());
  c10::Storage slice = SliceStorage(RecordPtr::reclaim_copy(RecordOf(storage.unsafeGetStorageImpl())), 8, 16);
  EXPECT_EQ(slice.data(), first + 1);
  EXPECT_EQ(slice.nbytes(), 16U);
  EXPECT_EQ(RecordOf(slice.unsafeGetStorageImpl()), nullptr) << "nothing is to settle on the graph runner's side";

  first[1] = 20;
  EXPECT_EQ(First(slice), 20);
  whole = at::Tensor();
  EXPECT_EQ(First(slice), 20) << "outlives the tensor it was cut from";
}

TEST(StorageRecord, LentValueGetsBytesOfItsOwnBeforeTheBufferIsOverwritten) {
  const auto [token, buffer, record] = LentValue({1, 2});
  EXPECT_EQ(record->real.data(), buffer.data());

  OwnBytes(*record);
  *static_cast<int64_t*>(buffer.mutable_data()) = 99;
  FillToken(token.unsafeGetStorageImpl(), *record);
  EXPECT_EQ(First(token), 1);
  OwnBytes(*record);  // again: nothing to do
  EXPECT_EQ(First(token), 1);
}

TEST(StorageRecord, ReadingALentValueOwnsItToo) {
  const auto [token, buffer, record] = LentValue({3, 4});
  FillToken(token.unsafeGetStorageImpl(), *record);
  *static_cast<int64_t*>(buffer.mutable_data()) = 99;
  EXPECT_EQ(First(token), 3);
}

TEST(StorageRecord, RefreshBringsACopyUpToDate) {
  const auto [token, buffer, record] = LentValue({1, 2});
  OwnBytes(*record);
  *static_cast<int64_t*>(buffer.mutable_data()) = 5;
  RefreshBytes(*record, buffer);
  EXPECT_EQ(First(record->real), 5);
}

TEST(StorageRecord, WrappingKeepsTheBytesWhereTheyAre) {
  const auto tensor = torch::arange(4);
  const void* before = tensor.const_data_ptr();
  const c10::Storage storage = tensor.unsafeGetTensorImpl()->unsafe_storage();
  ASSERT_TRUE(WrapStorage(storage));
  const StorageRecord* record = RecordOf(storage.unsafeGetStorageImpl());
  ASSERT_NE(record, nullptr);
  EXPECT_FALSE(record->is_token);
  EXPECT_EQ(storage.data(), before);
  EXPECT_EQ(record->real.data(), before);
}

TEST(StorageRecord, ForeignMemoryIsNotWrapped) {
  std::vector<float> numbers(4, 1.0f);
  const auto tensor = torch::from_blob(numbers.data(), {4});
  EXPECT_FALSE(WrapStorage(tensor.unsafeGetTensorImpl()->unsafe_storage()));
  EXPECT_EQ(RecordOf(*tensor.unsafeGetTensorImpl()), nullptr);
}

TEST(StorageRecord, DataPointerOfThisTorchCanBeSetOnItsOwn) { EXPECT_TRUE(ProbeDataPointerLayout()); }

}  // namespace
}  // namespace outrider::seam
