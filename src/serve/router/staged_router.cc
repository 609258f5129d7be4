#include "serve/router/staged_router.h"

#include <algorithm>
#include <vector>

#include "kernels/engine.h"

namespace outrider::serve {
namespace {

int64_t PagesOf(int64_t tokens) { return (tokens + kernels::kPageTokens - 1) / kernels::kPageTokens; }

// Texts of the tokens from `first` on that one launch takes, each the end of its tokens.
std::vector<int64_t> EndsOfTexts(const PassTokens& tokens, int64_t first) {
  const int64_t last = std::min(tokens.count(), first + RouteStage::kTokensMax);
  std::vector<int64_t> ends;
  for (int64_t at = first; at < last && std::ssize(ends) < RouteStage::kTextsMax; at = ends.back()) {
    int64_t end = at + 1;
    while (end < last && tokens.GoesOn(end)) ++end;
    ends.push_back(end);
  }
  return ends;
}

}  // namespace

int64_t RouteStage::SizeMax(int64_t context) { return kPages + kTextsMax * PagesOf(context); }

RouteStage StagedRouter::Stage(const PassTokens& tokens, int64_t first) {
  const std::vector<int64_t> ends = EndsOfTexts(tokens, first);
  RouteStage stage{.tokens = ends.back() - first, .texts = std::ssize(ends)};
  const auto pages_of = [&](int64_t end) { return PagesOf(tokens.positions[static_cast<size_t>(end - 1)] + 1); };
  for (const int64_t end : ends) stage.table = std::max(stage.table, pages_of(end));
  int32_t* to = device_->staging();
  int64_t token = first;
  for (int64_t text = 0; text < stage.texts; ++text) {
    const int64_t end = ends[static_cast<size_t>(text)];
    std::copy_n(tokens.pages[static_cast<size_t>(token)], pages_of(end), to + RouteStage::kPages + text * stage.table);
    for (; token < end; ++token) {
      const auto t = static_cast<size_t>(token);
      to[RouteStage::kIds + token - first] = tokens.ids[t];
      to[RouteStage::kPositions + token - first] = static_cast<int32_t>(tokens.positions[t]);
      to[RouteStage::kTexts + token - first] = static_cast<int32_t>(text);
    }
  }
  return stage;
}

base::Result<void> StagedRouter::Logits(std::span<const RouteRun> runs, std::span<float> logits) {
  const auto tokens = Take(runs, logits.size());
  if (!tokens) return tl::unexpected(tokens.error());
  for (int64_t first = 0; first < tokens->count();) {
    const RouteStage stage = Stage(*tokens, first);
    const auto found = device_->Run(stage);
    if (!found) return tl::unexpected(found.error());
    std::copy_n(*found, stage.tokens * spec_.experts, logits.data() + first * spec_.experts);
    first += stage.tokens;
  }
  return {};
}

}  // namespace outrider::serve
