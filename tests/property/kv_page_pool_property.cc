#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "serve/kv_page_pool.h"
#include "support/below.h"

namespace outrider::serve {
namespace {

RC_GTEST_PROP(KvPagePoolProperty, CountsAsHoldersDo, ()) {
  KvPagePool pool(1 + Below(12));
  std::vector<int32_t> held;  // one entry per reference
  const auto any_held = [&] { return held.begin() + Below(static_cast<uint32_t>(held.size())); };
  for (uint32_t calls = Below(60); calls > 0; --calls) {
    const uint32_t kind = Below(4);
    if (kind < 2) {
      const int64_t n = Below(5);
      const bool fails = Below(5) == 0;
      if (fails) pool.FailNthAlloc(1);
      std::vector<int32_t> pages;
      const int64_t free = pool.Free();
      RC_ASSERT(pool.Alloc(n, pages).has_value() == (!fails && n <= free));
      RC_ASSERT(pages.empty() || static_cast<int64_t>(pages.size()) == n);
      for (const int32_t page : pages) RC_ASSERT(std::find(held.begin(), held.end(), page) == held.end());
      held.insert(held.end(), pages.begin(), pages.end());
    } else if (!held.empty() && kind == 2) {
      const int32_t page = *any_held();
      pool.Retain({&page, 1});
      held.push_back(page);
    } else if (!held.empty()) {
      const auto which = any_held();
      pool.Release({&*which, 1});
      held.erase(which);
    }
    RC_ASSERT(pool.Violations(held).empty());
    RC_ASSERT(pool.Free() == pool.Pages() - static_cast<int64_t>(std::set(held.begin(), held.end()).size()));
  }
  pool.Release(held);
  RC_ASSERT(pool.Free() == pool.Pages());
}

}  // namespace
}  // namespace outrider::serve
