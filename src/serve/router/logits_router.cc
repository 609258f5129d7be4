#include "serve/router/logits_router.h"

#include <cmath>
#include <string>

namespace outrider::serve {

float RouterSpec::score_scale() const {
  return scale == ScoreScale::kNone ? 1 : 1 / std::sqrt(static_cast<float>(head_dim()));
}

ExpertId ChooseExpert(std::span<const float> logits, double tau, ExpertId previous) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) best = logits[i] > logits[best] ? i : best;
  if (previous == kNoExpert || tau <= 0) return static_cast<ExpertId>(best);
  const bool stays = static_cast<double>(logits[best]) - logits[previous] < tau;
  return stays ? previous : static_cast<ExpertId>(best);
}

base::Result<void> CheckRouter(const RouterSpec& spec, int64_t backbone_width, const ModelShape& shape) {
  if (spec.experts != shape.experts || spec.experts < 1 || spec.vocab != shape.vocab)
    return base::Fail("E_EXPERTS", "router: found " + std::to_string(spec.experts) + " experts and " +
                                       std::to_string(spec.vocab) + " tokens, expected the model's " +
                                       std::to_string(shape.experts) + " and " + std::to_string(shape.vocab));
  if (spec.heads < 1 || spec.width < 1 || spec.width % (2 * spec.heads) != 0 ||
      (spec.table == RouterTable::kTied && spec.width > backbone_width))
    return base::Fail("E_SHAPE", "router: width: found " + std::to_string(spec.width) +
                                     ", expected a multiple of twice the heads, and with a tied table at most " +
                                     std::to_string(backbone_width));
  if (spec.context == RouterContext::kCausal && shape.route_pages < 1)
    return base::Fail("E_LIMITS",
                      "found " + std::to_string(shape.route_pages) + " pages for the router, expected at least one");
  return {};
}

base::Result<PassTokens> LogitsRouter::Take(std::span<const RouteRun> runs, size_t logits) const {
  PassTokens tokens;
  for (size_t r = 0; r < runs.size(); ++r) {
    if (runs[r].previous != kNoExpert && runs[r].previous >= spec_.experts)
      return base::Fail("E_EXPERTS", "run " + std::to_string(r) + ": previous: found " +
                                         std::to_string(runs[r].previous) + ", expected 0 to " +
                                         std::to_string(spec_.experts - 1) + ", or none");
    const PassTokens::Limits limits{spec_.vocab, shape_.context, shape_.route_pages};
    if (auto ok = tokens.Add(r, runs[r].ids, runs[r].position, runs[r].route_pages, limits); !ok)
      return tl::unexpected(ok.error());
  }
  if (static_cast<int64_t>(logits) != tokens.count() * spec_.experts)
    return base::Fail("E_SHAPE", "found room for " + std::to_string(logits) + " logits, expected " +
                                     std::to_string(tokens.count()) + " rows of " + std::to_string(spec_.experts));
  return tokens;
}

base::Result<void> LogitsRouter::Route(std::span<const RouteRun> runs, std::span<ExpertId> experts) {
  size_t count = 0;
  for (const RouteRun& run : runs) count += run.ids.size();
  if (experts.size() != count)
    return base::Fail("E_SHAPE", "found room for " + std::to_string(experts.size()) +
                                     " experts, expected one for each of " + std::to_string(count) + " tokens");
  const auto columns = static_cast<size_t>(spec_.experts);
  logits_.resize(count * columns);
  if (auto done = Logits(runs, logits_); !done) return done;
  size_t at = 0;
  for (const RouteRun& run : runs) {
    ExpertId previous = run.previous;
    for (size_t i = 0; i < run.ids.size(); ++i, ++at)
      experts[at] = previous = ChooseExpert(std::span(logits_).subspan(at * columns, columns), spec_.tau, previous);
  }
  return {};
}

}  // namespace outrider::serve
