#include "serve/pages.h"

#include <algorithm>
#include <utility>

namespace outrider::serve {
namespace {

int64_t PlannedTokens(const RequestState& state) { return static_cast<int64_t>(state.experts.size()); }

void Append(std::vector<int32_t>& to, const std::vector<int32_t>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

Pages::Pages(const ModelShape& shape, const EngineOptions& options)
    : page_tokens_(shape.kv_page_tokens),
      dense_(shape.experts == 0),
      prompts_apart_(shape.prompts_apart),
      kv_(shape.kv_pages),
      route_(dense_ ? 0 : shape.route_pages),
      page_fault_(options.page_fault) {
  if (options.prefix_cache == EngineOptions::PrefixCache::kOff) return;
  const PrefixTreeLimits limits{.page_tokens = page_tokens_, .nodes_max = std::max(kv_.Pages(), route_.Pages())};
  tree_.emplace(limits, kv_, dense_ ? nullptr : &route_);
}

bool Pages::GrowKv(RequestState& state, int64_t tokens) {
  const int64_t more = KvPagesOf(tokens) - static_cast<int64_t>(state.kv_pages.size());
  if (more <= 0) return true;
  if (Refused()) return false;
  if (tree_ && more > kv_.Free()) tree_->EvictKv(more - kv_.Free());
  return kv_.Alloc(more, state.kv_pages).has_value();
}

bool Pages::GrowRoute(RequestState& state, int64_t tokens) {
  const int64_t more = KvPagesOf(tokens) - static_cast<int64_t>(state.route_pages.size());
  if (dense_ || more <= 0) return true;
  if (Refused()) return false;
  if (tree_ && more > route_.Free()) tree_->EvictRoutes(more - route_.Free());
  return route_.Alloc(more, state.route_pages).has_value();
}

void Pages::ReleaseKv(RequestState& state) {
  kv_.Release(state.kv_pages);
  state.kv_pages.clear();
  state.computed = 0;
}

void Pages::ReleaseRoute(RequestState& state) {
  route_.Release(state.route_pages);
  state.route_pages.clear();
  state.experts.clear();
}

void Pages::Match(RequestState& state) {
  if (!tree_) return;
  PrefixMatch match = tree_->Match(state.request.tenant.salt, std::span(state.text).first(state.text.size() - 1));
  if (state.echoes()) {  // the logits of every token of the prompt are wanted
    kv_.Release(match.kv_pages);
  } else {
    if (prompts_apart_) LeaveWritten(state, match);
    Append(state.kv_pages, match.kv_pages);
    state.computed = match.tokens;
  }
  if (PlannedTokens(state) > 0) {
    route_.Release(match.route_pages);
  } else if (!dense_) {
    state.experts = std::move(match.experts);
    state.route_pages = std::move(match.route_pages);
  }
}

// Keys and values in the cache are those of prompts: what this text wrote itself is computed again.
void Pages::LeaveWritten(const RequestState& state, PrefixMatch& match) {
  const auto whole = static_cast<size_t>(state.prompt_tokens() / page_tokens_);
  if (match.kv_pages.size() <= whole) return;
  kv_.Release(std::span(match.kv_pages).subspan(whole));
  match.kv_pages.resize(whole);
  match.tokens = static_cast<int64_t>(whole) * page_tokens_;
}

void Pages::Remember(const RequestState& state) {
  if (!tree_) return;
  const int64_t kept = prompts_apart_ ? std::min(state.computed, state.prompt_tokens()) : state.computed;
  const auto computed = static_cast<size_t>(kept / page_tokens_);
  PrefixText text{.ids = std::span(state.text).first(static_cast<size_t>(kept)),
                  .experts = {},
                  .kv_pages = std::span(state.kv_pages).first(computed),
                  .route_pages = {}};
  if (!dense_) {
    text.ids = std::span(state.text).first(state.experts.size());
    text.experts = state.experts;
    text.route_pages = std::span(state.route_pages).first(state.experts.size() / static_cast<size_t>(page_tokens_));
  }
  tree_->Insert(state.request.tenant.salt, text);
}

int64_t Pages::KvCached() const {
  if (!tree_) return 0;
  const std::vector<int32_t> held = tree_->HeldKvPages();
  return std::count_if(held.begin(), held.end(), [this](int32_t page) { return kv_.References(page) == 1; });
}

std::vector<std::string> Pages::Violations(const std::vector<const RequestState*>& holders) const {
  std::vector<int32_t> kv, route;
  if (tree_) {
    kv = tree_->HeldKvPages();
    route = tree_->HeldRoutePages();
  }
  for (const RequestState* state : holders) {
    Append(kv, state->kv_pages);
    Append(route, state->route_pages);
  }
  std::vector<std::string> out = kv_.Violations(kv);
  for (auto& violation : route_.Violations(route)) out.push_back("router: " + std::move(violation));
  if (!tree_) return out;
  for (auto& violation : tree_->Violations()) out.push_back("prefix cache: " + std::move(violation));
  return out;
}

}  // namespace outrider::serve
