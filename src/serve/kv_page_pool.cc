#include "serve/kv_page_pool.h"

#include <limits>

#include "base/check.h"

namespace outrider::serve {

KvPagePool::KvPagePool(int64_t pages) {
  OUTRIDER_CHECK(pages >= 0 && pages <= std::numeric_limits<int32_t>::max(), "a pool of ", pages, " pages");
  references_.assign(static_cast<size_t>(pages), 0);
  free_.reserve(static_cast<size_t>(pages));
  for (int64_t page = pages; page > 0; --page) free_.push_back(static_cast<int32_t>(page - 1));
}

base::Result<void> KvPagePool::Alloc(int64_t n, std::vector<int32_t>& pages) {
  OUTRIDER_CHECK(n >= 0, n, " pages asked for");
  const bool injected = fail_in_ > 0 && --fail_in_ == 0;
  if (injected || n > Free()) {
    return base::Fail("E_KV_FULL", std::to_string(n) + " pages asked for, " + std::to_string(injected ? 0 : Free()) +
                                       " of " + std::to_string(Pages()) + " are free");
  }
  for (int64_t i = 0; i < n; ++i) {
    references_[static_cast<size_t>(free_.back())] = 1;
    pages.push_back(free_.back());
    free_.pop_back();
  }
  return {};
}

void KvPagePool::Retain(std::span<const int32_t> pages) {
  for (const int32_t page : pages) {
    OUTRIDER_CHECK(References(page) > 0, "page ", page, " is free");
    ++references_[static_cast<size_t>(page)];
  }
}

void KvPagePool::Release(std::span<const int32_t> pages) {
  for (const int32_t page : pages) {
    OUTRIDER_CHECK(References(page) > 0, "page ", page, " is free");
    if (--references_[static_cast<size_t>(page)] == 0) free_.push_back(page);
  }
}

int64_t KvPagePool::References(int32_t page) const {
  OUTRIDER_CHECK(page >= 0 && page < Pages(), "page ", page, " of ", Pages());
  return references_[static_cast<size_t>(page)];
}

std::vector<std::string> KvPagePool::Violations(std::span<const int32_t> held) const {
  std::vector<std::string> found;
  std::vector<int64_t> holders(references_.size(), 0);
  for (const int32_t page : held) {
    if (page < 0 || page >= Pages()) {
      found.push_back("held page " + std::to_string(page) + " does not exist");
    } else {
      ++holders[static_cast<size_t>(page)];
    }
  }
  std::vector<int64_t> listed(references_.size(), 0);
  for (const int32_t page : free_) ++listed[static_cast<size_t>(page)];
  for (size_t page = 0; page < references_.size(); ++page) {
    const std::string name = "page " + std::to_string(page);
    if (references_[page] != holders[page]) {
      found.push_back(name + " has " + std::to_string(references_[page]) + " references, held are " +
                      std::to_string(holders[page]));
    }
    if (listed[page] != (references_[page] == 0 ? 1 : 0)) {
      found.push_back(name + " is listed as free " + std::to_string(listed[page]) + " times with " +
                      std::to_string(references_[page]) + " references");
    }
  }
  return found;
}

}  // namespace outrider::serve
