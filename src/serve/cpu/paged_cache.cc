#include "serve/cpu/paged_cache.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/cpu.h"

namespace outrider::serve {

using kernels::kPageTokens;

base::Result<void> PassTokens::Add(size_t run, std::span<const int32_t> run_ids, int64_t position,
                                   std::span<const int32_t> run_pages, const Limits& limits) {
  const auto bad = [&](const char* code, const std::string& what) {
    return base::Fail(code, "run " + std::to_string(run) + ": " + what);
  };
  const auto count = static_cast<int64_t>(run_ids.size()), end = position + count;
  for (const int32_t id : run_ids)
    if (id < 0 || id >= limits.vocab)
      return bad("E_TOKEN", "found id " + std::to_string(id) + ", expected 0 to " + std::to_string(limits.vocab - 1));
  if (position < 0 || end > limits.context)
    return bad("E_CONTEXT", "found positions " + std::to_string(position) + " to " + std::to_string(end) +
                                ", expected at most " + std::to_string(limits.context) + " tokens");
  const auto used = static_cast<size_t>((end + kPageTokens - 1) / kPageTokens);
  if (run_pages.size() < used)
    return bad("E_PAGES", "found " + std::to_string(run_pages.size()) + " pages for " + std::to_string(end) +
                              " tokens, expected " + std::to_string(used));
  for (const int32_t page : run_pages.first(used))
    if (page < 0 || page >= limits.pages)
      return bad("E_PAGES",
                 "found page " + std::to_string(page) + ", expected 0 to " + std::to_string(limits.pages - 1));
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(run_ids[static_cast<size_t>(i)]);
    positions.push_back(position + i);
    pages.push_back(run_pages.data());
  }
  return {};
}

void RotaryTable::Fill(std::span<const int64_t> positions) {
  cos_.clear();
  sin_.clear();
  for (const int64_t position : positions) {
    for (const float frequency : frequencies_) {
      const float angle = static_cast<float>(position) * frequency;  // fp32, as the models were trained with
      cos_.push_back(std::cos(angle));
      sin_.push_back(std::sin(angle));
    }
  }
}

PagedCache::PagedCache(const kernels::KvShape& shape, int64_t pages) : shape_(shape) {
  memory_.Resize(pages * shape.PageFloats() * 4);
}

void PagedCache::Store(const PassTokens& tokens, const RotaryTable& rotary, const Call& call, int64_t token) {
  const kernels::TokenEngine& engine = *kernels::TokenEngines().front();
  const int64_t dim = shape_.head_dim, queries = shape_.heads * shape_.group;
  float* row = call.qkv + token * (queries + 2 * shape_.heads) * dim;
  for (int64_t h = 0; h < queries + shape_.heads; ++h)
    engine.rotate(row + h * dim, rotary.cos(token), rotary.sin(token), rotary.half());
  const auto t = static_cast<size_t>(token);
  const int64_t position = tokens.positions[t];
  const float* keys = row + queries * dim;
  kernels::StoreKeyValue(shape_, Page(tokens.pages[t][position / kPageTokens]), position, keys,
                         keys + shape_.heads * dim);
}

void PagedCache::Attend(const PassTokens& tokens, const RotaryTable& rotary, const Call& call,
                        kernels::Scratch& scratch, kernels::Workers& workers) {
  const kernels::TokenEngine& engine = *kernels::TokenEngines().front();
  const int64_t dim = shape_.head_dim, queries = shape_.heads * shape_.group, count = tokens.count();
  workers.Run(count, [&](int64_t token, int) { Store(tokens, rotary, call, token); });
  const int64_t longest = count == 0 ? 0 : *std::ranges::max_element(tokens.positions) + 1;
  const int64_t score_floats = kernels::ScoreFloats(shape_, longest);
  scratch.Clear();
  const int64_t scores_at = scratch.Add(score_floats * workers.threads() * 4);
  scratch.Commit();
  workers.Run(count * shape_.heads, [&](int64_t task, int worker) {
    const int64_t token = task / shape_.heads, head = task % shape_.heads;
    const auto t = static_cast<size_t>(token);
    const int64_t last = tokens.positions[t];
    const int64_t first = call.window > 0 ? std::max<int64_t>(0, last - call.window + 1) : 0;
    const kernels::KvView view{memory() + head * shape_.HeadFloats(),
                               shape_.PageFloats(),
                               tokens.pages[t],
                               first,
                               last,
                               shape_.group,
                               dim,
                               call.scale};
    const int64_t at = head * shape_.group * dim;
    engine.attend(view, call.qkv + token * (queries + 2 * shape_.heads) * dim + at,
                  reinterpret_cast<float*>(scratch.Get(scores_at)) + worker * score_floats,
                  call.out + token * queries * dim + at);
  });
}

}  // namespace outrider::serve
