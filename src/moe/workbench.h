#pragma once
// One refactoring in memory: model, data, experts, router and trainer. Its interface knows no tensor, so that the order
// of the stages (pipeline.h) and the Python bindings do not see torch.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "moe/masks.h"
#include "moe/options.h"
#include "moe/routes.h"
#include "outrider/coexec.h"

namespace outrider::moe {

enum class StageKind : uint8_t { kRouter, kExpert };

struct StepFacts {
  double loss = 0, nats = 0, divergence = 0, gradient_norm = 0, rate = 0;  // see StepReport
  int64_t tokens = 0;
  std::optional<Row> coexec = {};  // how the step was co-executed; nothing without Options::coexec
};

// What is known of the experts before tuning.
struct ExpertFacts {
  std::vector<LayerCounts> layers;
  // Per layer: nats per token on valid that cutting this layer alone to half its channels costs; experts.ratio
  // measured.
  std::vector<double> rise;
  std::vector<double> delta;     // per layer: mean over pairs of experts of |m_j minus m_i|, channels
  std::vector<double> coverage;  // coverage experts: share of mass kept by the best expert, per round
  int64_t reseeded = 0;
  std::string statistic;                     // published and static: the one used
  std::map<std::string, double> candidates;  // static, best: nats per token on valid, per statistic
  uint64_t hash = 0;
};

struct DocumentLoss {
  int64_t document = 0;  // index in its split
  int64_t tokens = 0;
  double nats = 0;  // sum over its tokens
};

struct DomainLoss {
  std::string domain;
  int64_t tokens = 0;
  double nats = 0;  // sum over tokens; documents have the same sums in parts
  std::vector<DocumentLoss> documents;
  RouteStats routes;               // of the ids used; empty without routing, and with a router per layer
  std::vector<RouteStats> layers;  // of each layer's first choice, with a router per layer
  // Ids of the traced texts, one after another: of each layer, or once for all layers. Where a token uses several
  // experts of a layer, its ids follow each other, best first.
  std::vector<std::vector<uint8_t>> trace;
  int64_t traced_tokens = 0;
};

// Ids that the model reads, and ids that may follow: target j stands at the last positions, each of its ids predicted
// from what is read up to there. The targets are alternatives and do not see each other.
struct TextQuery {
  std::vector<int64_t> inputs;
  std::vector<std::vector<int64_t>> targets;
};

struct TextAnswer {
  double log_probability = 0;  // nats, sum over the target
  bool greedy = false;         // each id of the target is the most likely one
};

enum class EvalMode : uint8_t {
  kRefactored,  // with the experts and the routing of the options
  kDense,       // all channels on
};

class Workbench {
 public:
  // Loads model, data and teacher. Codes: those of the model reader, E_DATA, E_OPTION, E_VOCAB.
  static base::Result<Workbench> Open(const Options& options);
  Workbench(Workbench&&) noexcept;
  Workbench& operator=(Workbench&&) noexcept;
  ~Workbench();

  // Calibrates and chooses experts, makes the router. Once, before any step, unless Restore was called.
  base::Result<ExpertFacts> MakeExperts();
  base::Result<StepFacts> Step(StageKind kind, int64_t round, int64_t step, int64_t steps);
  // Per domain, over at most `tokens` tokens of each, in texts of options.sequence tokens. split: "valid", "test", or
  // "unseen": the text of the domains that nothing is tuned on. Empty where there are none, and where ids are domains.
  // trace_tokens: of these, the ids of at most so many are kept, in whole texts.
  base::Result<std::vector<DomainLoss>> Evaluate(const std::string& split, EvalMode mode, int64_t tokens,
                                                 int64_t trace_tokens = 0);

  // Answers to one batch of queries, see text_scores.h; like Step and Evaluate only once there are experts.
  base::Result<std::vector<std::vector<TextAnswer>>> Score(const std::vector<TextQuery>& queries, EvalMode mode) const;

  // Hysteresis of later evaluations and of Export, in nats; the options' own until then.
  void SetTau(double tau);

  // Everything a resumed run needs, in one file; `position` comes back from Restore. Codes: E_WRITE; E_NAN: a tensor
  // (named) with a value that is no finite number, nothing is written; E_CHECKPOINT when
  // the file is of other options (names the field), E_READ, E_SAFETENSORS.
  base::Result<void> Save(const std::string& path, int64_t position) const;
  base::Result<int64_t> Restore(const std::string& path);

  // The model as other programs load it, into the new folder `folder`: weights with channels in stored order (all on),
  // config.json, outrider_masks.safetensors, outrider_router.safetensors, outrider.json. Codes: E_WRITE, E_OPTION.
  base::Result<void> Export(const std::string& folder) const;

  // What was tuned beside the frozen parent, with masks and router (docs/formats/adapter.md), into the new folder
  // `folder`. Codes: E_WRITE; E_OPTION without an adapter or experts.
  base::Result<void> ExportAdapter(const std::string& folder) const;

  int64_t Parameters() const;        // of the backbone
  int64_t RouterParameters() const;  // 0 without a router
  const Masks& masks() const;
  // Router logits [S, N] of one text, S >= 1; for comparisons with other implementations. Code E_OPTION: no router.
  base::Result<std::vector<float>> RouterLogits(const std::vector<int64_t>& ids) const;

 private:
  struct State;
  explicit Workbench(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace outrider::moe
