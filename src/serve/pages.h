#pragma once
// The pages of both caches, as the engine's requests hold them: keys and values of the backbone, and of the router.
// Used by the engine's thread alone. Growing is all or nothing.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "serve/executor.h"
#include "serve/options.h"
#include "serve/request_state.h"

namespace outrider::serve {

class PagePool {  // reference-counted
 public:
  explicit PagePool(int64_t pages) : references_(static_cast<size_t>(pages)) {
    for (int64_t page = pages; page-- > 0;) free_.push_back(static_cast<int32_t>(page));
  }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t size() const { return static_cast<int64_t>(references_.size()); }
  int32_t Take() {
    const int32_t page = free_.back();
    free_.pop_back();
    references_[static_cast<size_t>(page)] = 1;
    return page;
  }
  void Release(int32_t page) {
    if (--references_[static_cast<size_t>(page)] == 0) free_.push_back(page);
  }
  int32_t references(int32_t page) const { return references_[static_cast<size_t>(page)]; }

 private:
  std::vector<int32_t> references_, free_;
};

class Pages {
 public:
  Pages(const ModelShape& shape, const EngineOptions& options);

  // Pages for text[0, tokens); false: there are not enough, nothing was taken.
  bool GrowKv(RequestState& state, int64_t tokens);
  bool GrowRoute(RequestState& state, int64_t tokens);
  // Gives the pages back and forgets what lay in them.
  void ReleaseKv(RequestState& state);
  void ReleaseRoute(RequestState& state);

  // What other texts left of the beginning of this one; for a request that holds no KV pages.
  void Match(RequestState& state);
  // Keeps what this text computed for others.
  void Remember(const RequestState& state);

  int64_t KvFree() const;  // pages that a request could get, cached ones included
  int64_t KvPagesOf(int64_t tokens) const { return (tokens + page_tokens_ - 1) / page_tokens_; }
  int64_t kv_used() const { return kv_.size() - kv_.free(); }
  int64_t kv_cached() const { return 0; }
  int64_t route_used() const { return route_.size() - route_.free(); }

  // Pages whose count of holders is not what `holders` and the cache hold.
  std::vector<std::string> Violations(const std::vector<const RequestState*>& holders) const;

 private:
  bool Grow(PagePool& pool, std::vector<int32_t>& pages, int64_t tokens);

  const int64_t page_tokens_;
  PagePool kv_, route_;
  std::function<bool()> page_fault_;
};

}  // namespace outrider::serve
