#include "moe/evaluation.h"

#include <algorithm>
#include <memory>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "moe/ffn_hooks.h"
#include "moe/losses.h"
#include "moe/philox.h"

namespace outrider::moe {
namespace {

// nats [S] of one text, on the CPU.
void AddLosses(const Place& place, const TokenFile& file, const at::Tensor& nats, DomainLoss& out) {
  const float* loss = nats.const_data_ptr<float>();
  auto next = std::ranges::upper_bound(file.documents, place.offset);
  for (int64_t t = 0; t < nats.numel(); ++t) {
    const int64_t target = place.offset + t + 1;
    while (next != file.documents.end() && *next <= target) ++next;
    const int64_t document = next - file.documents.begin() - 1;
    if (out.documents.empty() || out.documents.back().document != document) out.documents.push_back({document, 0, 0});
    out.documents.back().nats += loss[t];
    ++out.documents.back().tokens;
  }
}

// ids [P, S, top] of one text: P is 1 with one id for all layers, else the number of layers.
void AddRoutes(const at::Tensor& ids, bool per_layer, int64_t experts, bool traced, DomainLoss& out) {
  const at::Tensor host = ids.to(at::kCPU).contiguous();
  const int64_t planes = host.size(0), tokens = host.size(1), top = host.size(2);
  const int64_t* next = host.const_data_ptr<int64_t>();
  if (per_layer) out.layers.resize(static_cast<size_t>(planes), RouteStats(experts));
  if (traced) out.trace.resize(static_cast<size_t>(planes));
  for (size_t p = 0; p < static_cast<size_t>(planes); ++p) {
    std::vector<int64_t> first;
    for (int64_t t = 0; t < tokens; ++t, next += top) {
      first.push_back(*next);
      for (int64_t k = 0; traced && k < top; ++k) out.trace[p].push_back(static_cast<uint8_t>(next[k]));
    }
    (per_layer ? out.layers[p] : out.routes).Add(first);
  }
  out.traced_tokens += traced ? tokens : 0;
}

class Evaluation {
 public:
  Evaluation(const Options& options, const RoutedModel& model, EvalMode mode)
      : options_(options),
        model_(model),
        refactored_(mode == EvalMode::kRefactored),
        weights_(model.ComputeCopy()),
        masking_(model.Prepare()) {}

  // `traced`: per text of the batch.
  void Add(const TokenBatch& batch, const TokenFile& file, const std::vector<bool>& traced, DomainLoss& out) const {
    const bool per_layer = refactored_ && model_.layer_router.has_value();
    std::vector<at::Tensor> chosen;
    const at::Tensor ids = refactored_ && model_.Masked() ? model_.ExpertIds(batch) : at::Tensor();
    const auto hook = refactored_ ? model_.Hook(masking_, ids, &chosen) : nullptr;
    const at::Tensor hidden = model::HiddenStates(model_.config, weights_, batch.inputs, hook.get());
    const TokenLoss loss =
        ChunkedTokenLoss(hidden.flatten(0, 1), weights_.head, batch.targets.flatten(), {}, options_.chunk);
    const auto texts = static_cast<int64_t>(batch.places.size());
    const at::Tensor nats = loss.nats.to(at::kCPU).view({texts, -1});
    at::Tensor routes;  // [P, B, S, top]
    if (per_layer) routes = at::stack(chosen).view({static_cast<int64_t>(chosen.size()), texts, options_.sequence, -1});
    if (ids.defined()) routes = ids.view({1, texts, options_.sequence, 1});
    for (int64_t text = 0; text < texts; ++text) {
      const auto b = static_cast<size_t>(text);
      AddLosses(batch.places[b], file, nats[text], out);
      if (routes.defined()) {
        AddRoutes(routes.select(1, text), per_layer, model_.masks.experts(), traced[b], out);
      }
    }
  }

 private:
  const Options& options_;
  const RoutedModel& model_;
  bool refactored_;
  model::Parameters weights_;
  RoutedModel::Masking masking_;
};

}  // namespace

std::vector<DomainLoss> EvaluateModel(const Options& options, const TokenData& data, const RoutedModel& model,
                                      const std::string& split, EvalMode mode, int64_t tokens, int64_t trace_tokens) {
  const at::NoGradGuard no_grad;
  const Evaluation evaluation(options, model, mode);
  std::vector<DomainLoss> losses;
  if (split == "unseen" && mode == EvalMode::kRefactored && model.routing == Routing::kDomain) return losses;
  for (const int64_t d : data.DomainsOf(split)) {
    const TokenFile& file = data.File(d, split);
    DomainLoss& out = losses.emplace_back();
    out.domain = data.Name(d);
    out.routes = RouteStats(std::max<int64_t>(model.masks.experts(), 1));
    const int64_t windows = (static_cast<int64_t>(file.tokens.size()) - 1) / options.sequence;
    const int64_t used = std::clamp<int64_t>(tokens / options.sequence, 1, windows);
    const int64_t traced = std::min(trace_tokens / options.sequence, used);
    for (int64_t begin = 0; begin < used; begin += options.micro_batch) {
      std::vector<Place> places;
      std::vector<bool> keep;
      for (int64_t w = begin; w < std::min(used, begin + options.micro_batch); ++w) {
        places.push_back({d, w * windows / used * options.sequence});
        keep.push_back(w * traced / used != (w + 1) * traced / used);
      }
      const uint64_t key = Random64(static_cast<uint64_t>(options.seed), Use::kRandomIds, ~0U, static_cast<uint32_t>(d),
                                    static_cast<uint32_t>(begin));
      evaluation.Add(MakeBatch(data, split, places, options.sequence, key, model.device()), file, keep, out);
    }
    for (const DocumentLoss& document : out.documents) {
      out.tokens += document.tokens;
      out.nats += document.nats;
    }
  }
  return losses;
}

}  // namespace outrider::moe
