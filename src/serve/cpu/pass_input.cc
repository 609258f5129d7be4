#include "serve/cpu/pass_input.h"

#include <string>

#include "kernels/engine.h"

namespace outrider::serve {

base::Result<ModelShape> ShapeOf(const spec::Config& config, int64_t experts, const PassLimits& limits) {
  const int64_t context = limits.context == 0 ? config.max_positions : limits.context;
  if (context < 1 || context > config.max_positions)
    return base::Fail("E_LIMITS", "context: found " + std::to_string(context) + ", expected 1 to " +
                                      std::to_string(config.max_positions));
  if (limits.kv_pages < 1 || limits.step_tokens_max < 1)
    return base::Fail("E_LIMITS", "found " + std::to_string(limits.kv_pages) + " pages and " +
                                      std::to_string(limits.step_tokens_max) +
                                      " tokens of a step, expected at least one of each");
  return ModelShape{.vocab = config.vocab,
                    .context = context,
                    .experts = experts,
                    .kv_page_tokens = kernels::kPageTokens,
                    .kv_pages = limits.kv_pages,
                    .route_pages = experts > 0 ? limits.route_pages : 0,
                    .step_tokens_max = limits.step_tokens_max};
}

base::Result<void> PassInput::Take(std::span<const TokenRun> runs, const ModelShape& shape) {
  tokens = {};
  experts.clear();
  wanted.clear();
  for (size_t r = 0; r < runs.size(); ++r) {
    const TokenRun& run = runs[r];
    const auto bad = [&](const char* code, const std::string& what) {
      return base::Fail(code, "run " + std::to_string(r) + ": " + what);
    };
    const auto count = static_cast<int64_t>(run.ids.size());
    if (run.experts.size() != (shape.experts == 0 ? 0 : run.ids.size()))
      return bad("E_SHAPE", "found " + std::to_string(run.experts.size()) + " experts for " + std::to_string(count) +
                                " tokens, expected " + (shape.experts == 0 ? "none" : "one for each"));
    if (run.logits_from < 0 || run.logits_from > count)
      return bad("E_SHAPE",
                 "logits_from: found " + std::to_string(run.logits_from) + ", expected 0 to " + std::to_string(count));
    for (const ExpertId e : run.experts)
      if (e >= shape.experts)
        return bad("E_EXPERTS",
                   "found expert " + std::to_string(e) + ", expected 0 to " + std::to_string(shape.experts - 1));
    for (int64_t i = run.logits_from; i < count; ++i) wanted.push_back(tokens.count() + i);
    experts.insert(experts.end(), run.experts.begin(), run.experts.end());
    if (auto ok = tokens.Add(r, run.ids, run.position, run.kv_pages, {shape.vocab, shape.context, shape.kv_pages}); !ok)
      return ok;
  }
  if (shape.experts == 0) experts.assign(tokens.ids.size(), 0);
  if (tokens.count() > shape.step_tokens_max)
    return base::Fail("E_SHAPE", "found " + std::to_string(tokens.count()) + " tokens, expected at most " +
                                     std::to_string(shape.step_tokens_max));
  return {};
}

base::Result<void> PassInput::CheckRows(size_t numbers, int64_t columns) const {
  if (numbers == wanted.size() * static_cast<size_t>(columns)) return {};
  return base::Fail("E_SHAPE", "logits: found " + std::to_string(numbers) + " numbers, expected " +
                                   std::to_string(wanted.size()) + " rows of " + std::to_string(columns));
}

}  // namespace outrider::serve
