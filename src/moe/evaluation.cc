#include "moe/evaluation.h"

#include <algorithm>
#include <utility>

#include <ATen/core/grad_mode.h>

#include "moe/ffn_hooks.h"
#include "moe/losses.h"
#include "moe/philox.h"

namespace outrider::moe {
namespace {

// nats and ids [S] of one text on the CPU; ids undefined without routing.
void AddWindow(const TokenBatch& batch, const TokenFile& file, const at::Tensor& nats, const at::Tensor& ids,
               DomainLoss& out) {
  const float* loss = nats.const_data_ptr<float>();
  auto next = std::ranges::upper_bound(file.documents, batch.places[0].offset);
  for (int64_t t = 0; t < nats.numel(); ++t) {
    const int64_t target = batch.places[0].offset + t + 1;
    while (next != file.documents.end() && *next <= target) ++next;
    const int64_t document = next - file.documents.begin() - 1;
    if (out.documents.empty() || out.documents.back().document != document) out.documents.push_back({document, 0, 0});
    out.documents.back().nats += loss[t];
    ++out.documents.back().tokens;
  }
  if (ids.defined()) out.routes.Add({ids.const_data_ptr<int64_t>(), static_cast<size_t>(ids.numel())});
}

}  // namespace

std::vector<DomainLoss> EvaluateModel(const Options& options, const TokenData& data, const RoutedModel& model,
                                      const std::string& split, EvalMode mode, int64_t tokens) {
  const at::NoGradGuard no_grad;
  const model::Parameters weights = model.ComputeCopy();
  const RoutedModel::Masking masking = model.Prepare();
  const bool refactored = mode == EvalMode::kRefactored;
  std::vector<DomainLoss> losses;
  for (int64_t d = 0; d < static_cast<int64_t>(data.domains().size()); ++d) {
    const TokenFile& file = data.File(d, split);
    DomainLoss& out = losses.emplace_back();
    out.domain = data.domains()[static_cast<size_t>(d)];
    out.routes = RouteStats(std::max<int64_t>(model.masks.experts(), 1));
    const int64_t windows = (static_cast<int64_t>(file.tokens.size()) - 1) / options.sequence;
    const int64_t used = std::clamp<int64_t>(tokens / options.sequence, 1, windows);
    for (int64_t w = 0; w < used; ++w) {
      const Place place{d, w * windows / used * options.sequence};
      const uint64_t key = Random64(static_cast<uint64_t>(options.seed), Use::kRandomIds, ~0U, static_cast<uint32_t>(d),
                                    static_cast<uint32_t>(w));
      const TokenBatch batch = MakeBatch(data, split, {&place, 1}, options.sequence, key, model.device());
      const at::Tensor ids = refactored && model.Masked() ? model.ExpertIds(batch) : at::Tensor();
      const auto hook = refactored ? model.Hook(masking, ids) : nullptr;
      const at::Tensor hidden = model::HiddenStates(model.config, weights, batch.inputs, hook.get());
      const TokenLoss loss =
          ChunkedTokenLoss(hidden.flatten(0, 1), weights.head, batch.targets.flatten(), {}, options.chunk);
      AddWindow(batch, file, loss.nats.to(at::kCPU), ids.defined() ? ids.to(at::kCPU) : ids, out);
    }
    for (const DocumentLoss& document : out.documents) {
      out.tokens += document.tokens;
      out.nats += document.nats;
    }
  }
  return losses;
}

}  // namespace outrider::moe
