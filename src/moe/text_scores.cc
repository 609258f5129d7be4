#include "moe/text_scores.h"

#include <algorithm>
#include <string>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

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

std::vector<TextAnswer> AnswersOf(const TextQuery& query, const at::Tensor& hidden, const at::Tensor& head) {
  const auto length = static_cast<int64_t>(query.inputs.size());
  int64_t most = 1;
  for (const std::vector<int64_t>& target : query.targets) most = std::max(most, static_cast<int64_t>(target.size()));
  const at::Tensor logits = hidden.slice(0, length - most, length).matmul(head.t()).to(at::kFloat);
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
  const model::Parameters weights = model.ComputeCopy();
  const RoutedModel::Masking masking = model.Prepare();
  const at::Tensor ids = refactored && model.Masked() ? model.ExpertIds(batch) : at::Tensor();
  const auto hook = refactored ? model.Hook(masking, ids) : nullptr;
  const at::Tensor hidden = model::HiddenStates(model.config, weights, batch.inputs, hook.get());
  for (size_t q = 0; q < queries.size(); ++q) {
    answers.push_back(AnswersOf(queries[q], hidden[static_cast<int64_t>(q)], weights.head));
  }
  return answers;
}

}  // namespace outrider::moe
