#include "serve/pages.h"

#include <string>
#include <utility>

namespace outrider::serve {

Pages::Pages(const ModelShape& shape, const EngineOptions& options)
    : page_tokens_(shape.kv_page_tokens),
      kv_(shape.kv_pages),
      route_(shape.experts > 0 ? shape.route_pages : 0),
      page_fault_(options.page_fault) {}

bool Pages::Grow(PagePool& pool, std::vector<int32_t>& pages, int64_t tokens) {
  const int64_t more = KvPagesOf(tokens) - static_cast<int64_t>(pages.size());
  if (more <= 0) return true;
  if (more > pool.free() || (page_fault_ && page_fault_())) return false;
  for (int64_t i = 0; i < more; ++i) pages.push_back(pool.Take());
  return true;
}

bool Pages::GrowKv(RequestState& state, int64_t tokens) { return Grow(kv_, state.kv_pages, tokens); }

bool Pages::GrowRoute(RequestState& state, int64_t tokens) {
  return route_.size() == 0 || Grow(route_, state.route_pages, tokens);
}

void Pages::ReleaseKv(RequestState& state) {
  for (const int32_t page : state.kv_pages) kv_.Release(page);
  state.kv_pages.clear();
  state.computed = 0;
}

void Pages::ReleaseRoute(RequestState& state) {
  for (const int32_t page : state.route_pages) route_.Release(page);
  state.route_pages.clear();
  state.experts.clear();
}

void Pages::Match(RequestState&) {}
void Pages::Remember(const RequestState&) {}
int64_t Pages::KvFree() const { return kv_.free(); }

std::vector<std::string> Pages::Violations(const std::vector<const RequestState*>& holders) const {
  std::vector<std::string> out;
  const auto compare = [&out](const char* name, const PagePool& pool, const std::vector<int32_t>& held) {
    for (size_t page = 0; page < held.size(); ++page) {
      const int32_t counted = pool.references(static_cast<int32_t>(page));
      if (counted != held[page])
        out.push_back(std::string(name) + " page " + std::to_string(page) + ": counted " + std::to_string(counted) +
                      " holders, found " + std::to_string(held[page]));
    }
  };
  std::vector<int32_t> kv(static_cast<size_t>(kv_.size())), route(static_cast<size_t>(route_.size()));
  for (const RequestState* state : holders) {
    for (const int32_t page : state->kv_pages) ++kv[static_cast<size_t>(page)];
    for (const int32_t page : state->route_pages) ++route[static_cast<size_t>(page)];
  }
  compare("KV", kv_, kv);
  compare("route", route_, route);
  return out;
}

}  // namespace outrider::serve
