#include "base/free_list.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

namespace outrider::base {
namespace {

struct Base {
  virtual ~Base() = default;
};

struct Small : Base, FreeListed<Small> {
  long value = 0;
};

struct Larger : Small {
  long more[4] = {};
};

TEST(FreeList, WhatWasFreedLastIsTakenNext) {
  auto first = std::make_unique<Small>();
  const void* address = first.get();
  const size_t kept = Small::KeptCount();
  first.reset();
  EXPECT_EQ(Small::KeptCount(), kept + 1);
  const auto second = std::make_unique<Small>();
  EXPECT_EQ(second.get(), address);
  EXPECT_EQ(Small::KeptCount(), kept);
}

TEST(FreeList, DeletedThroughItsBase) {
  const size_t kept = Small::KeptCount();
  std::unique_ptr<Base> object = std::make_unique<Small>();
  const size_t taken = Small::KeptCount();
  object.reset();
  EXPECT_EQ(Small::KeptCount(), std::max(kept, taken + 1));
}

TEST(FreeList, ClassesBelowHaveTheirOwnMemory) {
  const size_t kept = Small::KeptCount();
  std::make_unique<Larger>().reset();
  EXPECT_EQ(Small::KeptCount(), kept);
}

TEST(FreeList, KeepsNoMoreThanItsMaximum) {
  std::vector<std::unique_ptr<Small>> objects;
  for (size_t i = 0; i < Small::kKeptMax + 10; ++i) objects.push_back(std::make_unique<Small>());
  objects.clear();
  EXPECT_EQ(Small::KeptCount(), Small::kKeptMax);
}

TEST(FreeList, ObjectsMayBeFreedByAnotherThread) {
  std::vector<std::unique_ptr<Small>> objects;
  for (long i = 0; i < 100; ++i) {
    objects.push_back(std::make_unique<Small>());
    objects.back()->value = i;
  }
  size_t kept = 0;
  std::thread([&, taken = std::move(objects)]() mutable {
    taken.clear();
    kept = Small::KeptCount();
  }).join();
  EXPECT_EQ(kept, 100u);
}

}  // namespace
}  // namespace outrider::base
