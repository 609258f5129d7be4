#include "moe/choose_experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "moe/carve.h"
#include "moe/evaluation.h"
#include "moe/experts.h"
#include "moe/ffn_hooks.h"
#include "moe/gradient_mass.h"
#include "moe/layer_budget.h"
#include "moe/select.h"

namespace outrider::moe {
namespace {

constexpr int64_t kMassBytesMax = int64_t{16} << 30;
constexpr int64_t kSelectionTokens = 16'384;  // per domain, to choose between static masks

// Cuts `count` tokens from `place` on into the units of the granularity.
std::vector<int64_t> UnitsOf(const Options& options, const TokenFile& file, const Place& place, int64_t count) {
  const int64_t window = WindowTokens(options);
  if (window == 0) return file.PiecesOf(place.offset, count);
  std::vector<int64_t> units;
  for (int64_t begin = 0; begin < count; begin += window) units.push_back(std::min(window, count - begin));
  return units;
}

Statistic StatisticNamed(const std::string& name) {
  if (name == "l1_out") return Statistic::kL1Out;
  return name == "fluctuation" ? Statistic::kFluctuation : Statistic::kL1;
}

class Chooser {
 public:
  Chooser(const Options& options, const TokenData& data, RoutedModel& model)
      : options_(options), data_(data), model_(model) {}

  base::Result<ExpertFacts> Run() {
    ExpertFacts facts;
    if (options_.experts_kind == "coverage") {
      auto masks = FindCoverage(options_.experts_count, facts);
      if (!masks) return tl::unexpected(masks.error());
      model_.masks = *std::move(masks);
    } else if (options_.experts_kind == "published") {
      facts.statistic = options_.experts_statistic;
      model_.masks =
          SelectPublished(Sums(), StatisticNamed(facts.statistic), Down(), KeptChannels(options_, model_.config));
    } else if (options_.experts_kind == "random") {
      model_.masks = SelectRandom(options_.experts_count, model_.config.layers, model_.config.ffn,
                                  KeptChannels(options_, model_.config), static_cast<uint64_t>(options_.seed));
    } else if (options_.experts_kind == "carved") {
      if (auto done = MakeCarved(); !done) return tl::unexpected(done.error());
    } else if (options_.experts_kind == "static") {
      if (auto done = MakeStatic(facts); !done) return tl::unexpected(done.error());
    }
    for (int64_t l = 0; l < model_.masks.layers(); ++l) {
      facts.layers.push_back(model_.masks.Count(l));
      facts.delta.push_back(model_.masks.MeanDelta(l));
    }
    facts.hash = model_.masks.Hash();
    return facts;
  }

 private:
  // Shows `look` the unmasked activations of every calibration sample; each sample is a forward pass of its own, so
  // that nothing depends on how many fit into memory.
  template <class Look>
  void Calibrate(const Look& look) const {
    const at::NoGradGuard no_grad;
    const model::Parameters weights = model_.ComputeCopy();
    for (const Place& place : data_.Spread("train", options_.calibration_samples, options_.calibration_tokens + 1)) {
      const TokenBatch batch = MakeBatch(data_, "train", {&place, 1}, options_.calibration_tokens, 0, model_.device());
      LookingHook hook([&](int64_t layer, const at::Tensor& h) { look(place, layer, h); });
      model::HiddenStates(model_.config, weights, batch.inputs, &hook);
    }
  }

  std::vector<at::Tensor> Down() const {
    std::vector<at::Tensor> down;
    for (const model::Layer& layer : model_.masters.layers) down.push_back(layer.down.detach());
    return down;
  }

  std::vector<at::Tensor> Norms() const {
    std::vector<at::Tensor> norms;
    for (const at::Tensor& down : Down()) norms.push_back(ColumnNorms(down));
    return norms;
  }

  std::vector<ChannelSums> Sums() const {
    std::vector<ChannelSums> sums;
    for (size_t d = 0; d < data_.domains().size(); ++d) {
      sums.emplace_back(model_.config.layers, model_.config.ffn, model_.device());
    }
    Calibrate([&](const Place& place, int64_t layer, const at::Tensor& h) {
      sums[static_cast<size_t>(place.domain)].Add(layer, h, options_.calibration_tokens);
    });
    return sums;
  }

  double NatsOnValid(const RoutedModel& model) const {
    double nats = 0, tokens = 0;
    for (const DomainLoss& d :
         EvaluateModel(options_, data_, model, "valid", EvalMode::kRefactored, kSelectionTokens)) {
      nats += d.nats;
      tokens += static_cast<double>(d.tokens);
    }
    return nats / tokens;
  }

  // What the loss on valid rises by when one layer alone keeps the stronger half of its channels, sinks among them.
  std::vector<double> Rises(const MassSample& sample) const {
    const double sink = options_.coverage_sink / static_cast<double>(sample.channels());
    RoutedModel probe = model_;
    probe.routing = Routing::kNone;
    probe.masks = Masks();
    const double whole = NatsOnValid(probe);
    std::vector<double> rises;
    const int64_t channels = model_.config.ffn;
    for (int64_t cut = 0; cut < model_.config.layers; ++cut) {
      std::vector<double> scores = sample.Mean(cut);
      const std::vector<double> peaks = sample.Peaks(cut);
      for (size_t c = 0; c < scores.size(); ++c) {
        if (peaks[c] > sink) scores[c] = std::numeric_limits<double>::infinity();
      }
      const std::vector<double> all(scores.size(), 0);
      probe.masks = Masks(1, model_.config.layers, channels);
      for (int64_t l = 0; l < model_.config.layers; ++l) {
        probe.masks.SetExpert(l, 0, l == cut ? TopChannels(scores, channels / 2) : TopChannels(all, channels));
      }
      rises.push_back(NatsOnValid(probe) - whole);
    }
    return rises;
  }

  // Empty with equal layers.
  std::vector<int64_t> KeepPerLayer(const MassSample& sample, ExpertFacts& facts) const {
    if (options_.experts_ratio != "measured") return {};
    std::vector<std::vector<double>> scores;
    for (int64_t l = 0; l < sample.layers(); ++l) scores.push_back(sample.Mean(l));
    facts.rise = Rises(sample);
    std::vector<double> weights;
    for (const double rise : facts.rise) weights.push_back(std::max(rise, 0.0));
    const int64_t keep = KeptChannels(options_, model_.config), channels = model_.config.ffn;
    return ShareOut(scores, weights,
                    {.total = sample.layers() * keep,
                     .least = std::min(keep, (channels + 3) / 4),
                     .step = std::max<int64_t>(1, channels / 96)});
  }

  // Of one expert only the mean over everything matters: a sample is one unit.
  std::vector<int64_t> UnitsAt(const Place& place, int64_t experts) const {
    if (experts == 1) return {options_.calibration_tokens};
    return UnitsOf(options_, data_.File(place.domain, "train"), place, options_.calibration_tokens);
  }

  void AddGradientMass(MassSample& sample, int64_t experts) const {
    const at::NoGradGuard no_grad;
    const model::Parameters weights = model_.ComputeCopy();
    GradientProbes probes;
    for (const Place& place : data_.Spread("train", options_.calibration_samples, options_.calibration_tokens + 1)) {
      const TokenBatch batch = MakeBatch(data_, "train", {&place, 1}, options_.calibration_tokens, 0, model_.device());
      const std::vector<at::Tensor> mass = GradientMass(model_, weights, batch, options_.chunk, probes);
      for (size_t l = 0; l < mass.size(); ++l)
        sample.AddMass(static_cast<int64_t>(l), mass[l], UnitsAt(place, experts));
    }
  }

  // Masks of `experts` coverage experts; the facts get what was found on the way.
  base::Result<Masks> FindCoverage(int64_t experts, ExpertFacts& facts) const {
    int64_t units = 0;
    for (const Place& p : data_.Spread("train", options_.calibration_samples, options_.calibration_tokens + 1)) {
      units += static_cast<int64_t>(UnitsAt(p, experts).size());
    }
    const int64_t bytes = 2 * units * model_.config.layers * model_.config.ffn;
    if (bytes > kMassBytesMax || units < experts) {
      return base::Fail("E_OPTION", "calibration.samples: found " + std::to_string(units) + " units of " +
                                        std::to_string(bytes) + " bytes in all, expected at least " +
                                        std::to_string(experts) + " units and at most " +
                                        std::to_string(kMassBytesMax) + " bytes");
    }
    MassSample sample(model_.config.layers, model_.config.ffn, units, model_.device());
    if (options_.coverage_mass == "gradient") {
      AddGradientMass(sample, experts);
    } else {
      const std::vector<at::Tensor> norms = Norms();
      Calibrate([&](const Place& place, int64_t layer, const at::Tensor& h) {
        sample.Add(layer, h, norms[static_cast<size_t>(layer)], UnitsAt(place, experts));
      });
    }
    CoverageExperts found = FindCoverageExperts(sample, {.experts = experts,
                                                         .keep = KeptChannels(options_, model_.config),
                                                         .keep_per_layer = KeepPerLayer(sample, facts),
                                                         .across_layers = options_.experts_ratio == "global",
                                                         .rounds = options_.coverage_rounds,
                                                         .seed = static_cast<uint64_t>(options_.seed),
                                                         .sink_factor = options_.coverage_sink});
    facts.coverage = std::move(found.coverage);
    facts.reseeded = found.reseeded;
    return std::move(found.masks);
  }

  base::Result<void> MakeCarved() {
    const CarveOptions carve{.keep = KeptChannels(options_, model_.config),
                             .experts = options_.experts_count,
                             .top = options_.carved_top,
                             .sink_factor = options_.coverage_sink};
    const int64_t bytes = 4 * model_.config.layers * model_.config.ffn * model_.config.ffn;
    if (bytes > kMassBytesMax) {
      return base::Fail("E_OPTION", "experts.kind: carved counts pairs of channels in " + std::to_string(bytes) +
                                        " bytes, expected at most " + std::to_string(kMassBytesMax));
    }
    const std::vector<at::Tensor> norms = Norms();
    CoActivation seen(model_.config.layers, model_.config.ffn, model_.device());
    Calibrate([&](const Place&, int64_t layer, const at::Tensor& h) {
      seen.Add(layer, h, norms[static_cast<size_t>(layer)]);
    });
    auto carved = Carve(seen, carve);
    if (!carved) return tl::unexpected(carved.error());
    RepresentativeFit fit(*carved, model_.device());
    Calibrate([&](const Place&, int64_t layer, const at::Tensor& h) {
      fit.Add(layer, h, norms[static_cast<size_t>(layer)]);
    });
    std::vector<at::Tensor> gate, up;
    for (const model::Layer& layer : model_.masters.layers) {
      gate.push_back(layer.gate.detach());
      up.push_back(layer.up.detach());
    }
    model_.layer_router = fit.Router(gate, up, carve.top);
    model_.masks = std::move(carved->masks);
    return {};
  }

  // `coverage`: one expert of the coverage kind.
  base::Result<void> MakeStatic(ExpertFacts& facts) {
    base::Result<Masks> covering = Masks();
    std::vector<std::string> candidates = {"l1", "l1_out", "fluctuation"};
    const bool best = options_.experts_statistic.starts_with("best");
    if (options_.experts_statistic == "coverage" || options_.experts_statistic == "best") {
      candidates.emplace_back("coverage");
      covering = FindCoverage(1, facts);
      if (!covering) return tl::unexpected(covering.error());
    }
    const std::vector<ChannelSums> sums = Sums();
    const std::vector<at::Tensor> down = Down();
    const auto choose = [&](const std::string& name) {
      model_.masks = name == "coverage"
                         ? *covering
                         : SelectStatic(sums, StatisticNamed(name), down, KeptChannels(options_, model_.config));
      model_.fill = name == "fluctuation" ? Compensation(sums, model_.masks) : std::vector<at::Tensor>();
    };
    facts.statistic = options_.experts_statistic;
    if (best) {
      for (const std::string& name : candidates) {
        choose(name);
        facts.candidates[name] = NatsOnValid(model_);
      }
      facts.statistic = std::ranges::min_element(facts.candidates, {}, [](const auto& c) { return c.second; })->first;
    }
    choose(facts.statistic);
    return {};
  }

  const Options& options_;
  const TokenData& data_;
  RoutedModel& model_;
};

}  // namespace

int64_t KeptChannels(const Options& options, const model::Config& config) {
  return std::clamp<int64_t>(std::llround(options.experts_keep * static_cast<double>(config.ffn)), 1, config.ffn);
}

LayerRouter EmptyLayerRouter(const Options& options, const RoutedModel& model) {
  const int64_t layers = model.masks.layers(), experts = model.masks.experts(), hidden = model.config.hidden_size;
  if (options.experts_kind != "carved") return LayerRouter::Linear(layers, experts, hidden, model.device());
  const auto like = at::TensorOptions().dtype(at::kFloat).device(model.device());
  const at::Tensor lines = at::zeros({layers, experts}, like);
  const at::Tensor rows = at::zeros({layers, experts, hidden}, like);
  return LayerRouter::Gated(rows, rows.clone(), lines, lines.clone(), options.carved_top);
}

base::Result<ExpertFacts> ChooseExperts(const Options& options, const TokenData& data, RoutedModel& model) {
  return Chooser(options, data, model).Run();
}

}  // namespace outrider::moe
