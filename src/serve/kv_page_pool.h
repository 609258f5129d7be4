#pragma once
// Reference-counted pages of a cache of keys and values. The pool knows numbers only; the bytes belong to the machine.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace outrider::serve {

// Pages 0 .. pages-1. Owned and used by one thread.
class KvPagePool {
 public:
  explicit KvPagePool(int64_t pages);

  // Appends n pages with one reference each, or none and E_KV_FULL. Same calls give same pages.
  [[nodiscard]] base::Result<void> Alloc(int64_t n, std::vector<int32_t>& pages);
  // One more reference to each page, all of which have one.
  void Retain(std::span<const int32_t> pages);
  // One reference less; a page without any is free.
  void Release(std::span<const int32_t> pages);

  int64_t Pages() const { return static_cast<int64_t>(references_.size()); }
  int64_t Free() const { return static_cast<int64_t>(free_.size()); }
  int64_t References(int32_t page) const;

  // For tests: the n-th Alloc from now on, counted from 1, fails once as if the pool were full.
  void FailNthAlloc(int64_t n) { fail_in_ = n; }

  // All broken invariants. `held`: the pages that somebody holds, each as often as it has references; what is missing
  // there has leaked.
  std::vector<std::string> Violations(std::span<const int32_t> held) const;

 private:
  std::vector<int32_t> references_;  // by page
  std::vector<int32_t> free_;        // the last is taken first
  int64_t fail_in_ = 0;              // calls of Alloc until one fails; 0: none
};

}  // namespace outrider::serve
