#pragma once
// The pages of both caches, as requests hold them: keys and values of the backbone, and of the router. Behind them the
// prefix cache, which gives its pages up when requests need them. Used by the engine's thread alone.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "serve/executor.h"
#include "serve/kv_page_pool.h"
#include "serve/options.h"
#include "serve/prefix_tree.h"
#include "serve/request_state.h"

namespace outrider::serve {

class Pages {
 public:
  Pages(const ModelShape& shape, const EngineOptions& options);

  // Pages for text[0, tokens); false: there are not enough, nothing was taken.
  bool GrowKv(RequestState& state, int64_t tokens);
  bool GrowRoute(RequestState& state, int64_t tokens);
  // Gives the pages back and forgets what lay in them.
  void ReleaseKv(RequestState& state);
  void ReleaseRoute(RequestState& state);

  // Takes what other texts left of the beginning of this one, its last token apart; for a request that holds no KV
  // pages. A plan that it has already stays.
  void Match(RequestState& state);
  // Keeps what this text computed for others. May take pages away from the prefix cache, never from requests.
  void Remember(const RequestState& state);

  // Pages that requests could get: free ones and those that only the prefix cache holds. As slow as the cache is large.
  int64_t KvWithin() const { return kv_.Free() + KvCached(); }
  int64_t KvCached() const;
  int64_t KvFree() const { return kv_.Free(); }
  int64_t KvPagesOf(int64_t tokens) const { return (tokens + page_tokens_ - 1) / page_tokens_; }
  int64_t KvTaken() const { return kv_.Pages() - kv_.Free(); }
  int64_t RouteTaken() const { return route_.Pages() - route_.Free(); }

  // Broken invariants of pools and cache, when these requests and nobody else hold pages.
  std::vector<std::string> Violations(const std::vector<const RequestState*>& holders) const;

 private:
  bool Refused() { return page_fault_ && page_fault_(); }
  void LeaveWritten(const RequestState& state, PrefixMatch& match);

  const int64_t page_tokens_;
  const bool dense_;
  const bool prompts_apart_;
  KvPagePool kv_, route_;
  std::optional<PrefixTree> tree_;  // behind the pools, which outlive it
  const std::function<bool()> page_fault_;
};

}  // namespace outrider::serve
