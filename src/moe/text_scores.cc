#include "moe/text_scores.h"

#include <algorithm>
#include <memory>
#include <string>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "model/kv_cache.h"
#include "moe/ffn_hooks.h"

namespace outrider::moe {
namespace {

std::string Complaint(const RoutedModel& model, const TextQuery& query) {
  const auto length = static_cast<int64_t>(query.inputs.size());
  if (length == 0 || length > model.config.max_positions) {
    return "found " + std::to_string(length) + " tokens, expected 1 to " + std::to_string(model.config.max_positions);
  }
  const auto known = [&](int64_t id) { return id >= 0 && id < model.config.vocab; };
  bool good = std::ranges::all_of(query.inputs, known);
  for (const std::vector<int64_t>& target : query.targets) {
    if (target.empty() || target.size() > query.inputs.size()) {
      return "found a target of " + std::to_string(target.size()) + " tokens, expected 1 to " + std::to_string(length);
    }
    good = good && std::ranges::all_of(target, known);
  }
  return good ? "" : "expected ids from 0 to " + std::to_string(model.config.vocab - 1);
}

// [B, S], padded on the right with 0; causal models need no mask for that.
TokenBatch Padded(std::span<const TextQuery> queries, at::Device device) {
  size_t longest = 0;
  for (const TextQuery& query : queries) longest = std::max(longest, query.inputs.size());
  const at::Tensor ids = at::zeros({static_cast<int64_t>(queries.size()), static_cast<int64_t>(longest)}, at::kLong);
  TokenBatch batch;
  for (size_t b = 0; b < queries.size(); ++b) {
    std::ranges::copy(queries[b].inputs, ids[static_cast<int64_t>(b)].mutable_data_ptr<int64_t>());
    batch.places.push_back({0, static_cast<int64_t>(b)});
  }
  batch.inputs = ids.to(device);
  return batch;
}

int64_t LongestTarget(const TextQuery& query) {
  size_t most = 1;
  for (const std::vector<int64_t>& target : query.targets) most = std::max(most, target.size());
  return static_cast<int64_t>(most);
}

// Tokens that all queries begin with, none of which a target needs; 0 when it is not worth a pass of its own. Task
// sets put the same solved examples in front of every question.
int64_t SharedTokens(std::span<const TextQuery> queries) {
  constexpr int64_t kWorthIt = 32;
  const std::vector<int64_t>& first = queries.front().inputs;
  auto shared = static_cast<int64_t>(first.size());
  for (const TextQuery& query : queries) {
    const auto apart = std::ranges::mismatch(first, query.inputs).in1 - first.begin();
    const auto free = static_cast<int64_t>(query.inputs.size()) - LongestTarget(query);
    shared = std::min({shared, static_cast<int64_t>(apart), free});
  }
  return queries.size() > 1 && shared >= kWorthIt ? shared : 0;
}

// One forward pass over texts, or two: what they share once, then what is left of each.
class Scoring {
 public:
  Scoring(const RoutedModel& model, EvalMode mode)
      : model_(model),
        refactored_(mode == EvalMode::kRefactored),
        weights_(model.ComputeCopy()),
        masking_(model.Prepare()) {}

  // [B, S - shared, d]
  at::Tensor Hidden(const TokenBatch& batch, int64_t shared) const {
    const int64_t texts = batch.inputs.size(0), length = batch.inputs.size(1);
    at::Tensor ids = refactored_ && model_.Masked() ? model_.ExpertIds(batch) : at::Tensor();
    if (shared == 0) {
      const auto hook = Hook(ids);
      return model::HiddenStates(model_.config, weights_, batch.inputs, hook.get());
    }
    if (ids.defined()) ids = ids.view({texts, length});
    model::KvCache one(model_.config, 1, shared, weights_.embed);
    const auto front = Hook(ids.defined() ? ids.slice(0, 0, 1).slice(1, 0, shared).flatten() : ids);
    model::HiddenStates(model_.config, weights_, batch.inputs.slice(0, 0, 1).slice(1, 0, shared), one, front.get());
    model::KvCache cache = one.Repeated(model_.config, texts, length);
    const auto rest = Hook(ids.defined() ? ids.slice(1, shared).flatten() : ids);
    return model::HiddenStates(model_.config, weights_, batch.inputs.slice(1, shared).contiguous(), cache, rest.get());
  }

  // Answers from hidden states [S, d] of the query's text, its padding included, without the first `shared` tokens.
  std::vector<TextAnswer> Answers(const TextQuery& query, const at::Tensor& hidden, int64_t shared) const {
    const int64_t end = static_cast<int64_t>(query.inputs.size()) - shared, most = LongestTarget(query);
    const at::Tensor logits = hidden.slice(0, end - most, end).matmul(weights_.head.t()).to(at::kFloat);
    const at::Tensor best = logits.argmax(-1), logs = at::log_softmax(logits, -1);
    std::vector<TextAnswer> answers;
    for (const std::vector<int64_t>& target : query.targets) {
      const auto count = static_cast<int64_t>(target.size());
      const at::Tensor ids = at::tensor(target, at::kLong).to(logits.device());
      const at::Tensor picked = logs.slice(0, most - count).gather(-1, ids.unsqueeze(-1));
      answers.push_back({picked.sum(at::kDouble).item<double>(), best.slice(0, most - count).equal(ids)});
    }
    return answers;
  }

 private:
  std::unique_ptr<model::FfnHook> Hook(const at::Tensor& ids) const {
    return refactored_ ? model_.Hook(masking_, ids) : nullptr;
  }

  const RoutedModel& model_;
  bool refactored_;
  model::Parameters weights_;
  RoutedModel::Masking masking_;
};

}  // namespace

base::Result<std::vector<std::vector<TextAnswer>>> ScoreTexts(const RoutedModel& model, EvalMode mode,
                                                              std::span<const TextQuery> queries) {
  const at::NoGradGuard no_grad;
  const bool refactored = mode == EvalMode::kRefactored;
  if (refactored && model.routing == Routing::kDomain) {
    return base::Fail("E_OPTION", "routing.kind: a text to be scored is of no domain");
  }
  for (size_t q = 0; q < queries.size(); ++q) {
    const std::string complaint = Complaint(model, queries[q]);
    if (!complaint.empty()) return base::Fail("E_OPTION", "query " + std::to_string(q) + ": " + complaint);
  }
  std::vector<std::vector<TextAnswer>> answers;
  if (queries.empty()) return answers;
  const TokenBatch batch = Padded(queries, model.device());
  const int64_t shared = SharedTokens(queries);
  const Scoring scoring(model, mode);
  const at::Tensor hidden = scoring.Hidden(batch, shared);
  for (size_t q = 0; q < queries.size(); ++q) {
    answers.push_back(scoring.Answers(queries[q], hidden[static_cast<int64_t>(q)], shared));
  }
  return answers;
}

}  // namespace outrider::moe
