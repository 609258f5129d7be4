#include "serve/kv_page_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"

namespace outrider::serve {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Pages = std::vector<int32_t>;

TEST(KvPagePool, GivesAllOrNothing) {
  KvPagePool pool(3);
  Pages pages{42};
  ASSERT_TRUE(pool.Alloc(2, pages));
  EXPECT_THAT(pages, ElementsAre(42, 0, 1));
  const base::Result<void> full = pool.Alloc(2, pages);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, "E_KV_FULL");
  EXPECT_EQ(full.error().message, "2 pages asked for, 1 of 3 are free");
  EXPECT_THAT(pages, ElementsAre(42, 0, 1));
  EXPECT_EQ(pool.Free(), 1);
  EXPECT_TRUE(pool.Alloc(0, pages));
}

TEST(KvPagePool, APageIsFreeWithItsLastReference) {
  KvPagePool pool(2);
  Pages pages;
  ASSERT_TRUE(pool.Alloc(2, pages));
  pool.Retain(Pages{1});
  pool.Release(pages);
  EXPECT_EQ(pool.Free(), 1);
  EXPECT_EQ(pool.References(1), 1);
  pool.Release(Pages{1});
  EXPECT_EQ(pool.Free(), 2);
  EXPECT_THAT(pool.Violations({}), IsEmpty());
}

TEST(KvPagePool, TheLastFreedPageIsTakenFirst) {
  KvPagePool pool(8);
  Pages pages;
  ASSERT_TRUE(pool.Alloc(4, pages));
  pool.Release(Pages{1, 3});
  Pages again;
  ASSERT_TRUE(pool.Alloc(3, again));
  EXPECT_THAT(again, ElementsAre(3, 1, 4));
}

TEST(KvPagePool, MisuseIsACheck) {
  KvPagePool pool(2);
  EXPECT_THROW(pool.Release(Pages{0}), base::CheckError);
  EXPECT_THROW(pool.Retain(Pages{0}), base::CheckError);
  EXPECT_THROW(pool.Retain(Pages{2}), base::CheckError);
  EXPECT_THROW(pool.Release(Pages{-1}), base::CheckError);
  EXPECT_THROW(KvPagePool(-1), base::CheckError);
  Pages pages;
  EXPECT_THROW(static_cast<void>(pool.Alloc(-1, pages)), base::CheckError);
}

TEST(KvPagePool, FindsLeaks) {
  KvPagePool pool(3);
  Pages pages;
  ASSERT_TRUE(pool.Alloc(2, pages));
  pool.Retain(Pages{0});
  EXPECT_THAT(pool.Violations(Pages{0, 1, 0}), IsEmpty());
  EXPECT_THAT(pool.Violations(Pages{0, 1}), ElementsAre("page 0 has 2 references, held are 1"));
  EXPECT_THAT(pool.Violations(Pages{0, 0, 1, 2}), ElementsAre("page 2 has 0 references, held are 1"));
  EXPECT_THAT(pool.Violations(Pages{9}), Contains(HasSubstr("held page 9 does not exist")));
}

TEST(KvPagePool, TheNthAllocationFails) {
  KvPagePool pool(8);
  Pages pages;
  pool.FailNthAlloc(2);
  EXPECT_TRUE(pool.Alloc(1, pages));
  EXPECT_EQ(pool.Alloc(1, pages).error().code, "E_KV_FULL");
  EXPECT_TRUE(pool.Alloc(1, pages));
  EXPECT_THAT(pages, ElementsAre(0, 1));
}

}  // namespace
}  // namespace outrider::serve
