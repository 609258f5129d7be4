#include "serve/cpu/cpu_executor.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "kernels/cpu.h"
#include "kernels/decode.h"
#include "kernels/linear.h"
#include "sampling/likeliest.h"

namespace outrider::serve {

base::Result<std::unique_ptr<CpuExecutor>> CpuExecutor::Make(CpuModel model, const PassLimits& limits,
                                                             std::shared_ptr<kernels::Workers> workers) {
  const spec::Config& config = model.config();
  const auto shape = ShapeOf(config, model.layerwise() ? 0 : model.experts(), limits);
  if (!shape) return tl::unexpected(shape.error());
  return std::unique_ptr<CpuExecutor>(new CpuExecutor(std::move(model), *shape, std::move(workers)));
}

CpuExecutor::CpuExecutor(CpuModel model, const ModelShape& shape, std::shared_ptr<kernels::Workers> workers)
    : model_(std::move(model)),
      shape_(shape),
      workers_(std::move(workers)),
      rotary_(RotaryFrequencies(model_.config())) {
  const spec::Config& config = model_.config();
  const kernels::KvShape kv{config.kv_heads, config.KvGroup(), config.head_dim};
  for (int64_t layer = 0; layer < config.layers; ++layer) caches_.emplace_back(kv, shape.kv_pages);
  const auto numbers = [&](int64_t width) { return static_cast<size_t>(shape.step_tokens_max * width); };
  x_.resize(numbers(config.hidden_size));
  normed_.resize(numbers(config.hidden_size));
  qkv_.resize(numbers((config.heads + 2 * config.kv_heads) * config.head_dim));
  mixed_.resize(numbers(config.heads * config.head_dim));
}

base::Result<RunCost> CpuExecutor::Run(std::span<const TokenRun> runs, std::span<float> logits) {
  const int64_t start = base::NowNs();
  if (auto taken = input_.Take(runs, shape_); !taken) return tl::unexpected(taken.error());
  if (auto fits = input_.CheckRows(logits.size(), shape_.vocab); !fits) return tl::unexpected(fits.error());
  if (input_.tokens.count() == 0) return RunCost{};
  Layers();
  if (!input_.wanted.empty()) Head(logits);
  return Cost(input_.wanted.empty() ? 0 : model_.HeadBytes(), start);
}

base::Result<RunCost> CpuExecutor::RunGreedy(std::span<const TokenRun> runs, std::span<int64_t> best) {
  const int64_t start = base::NowNs();
  const size_t logits = best.size() * static_cast<size_t>(shape_.vocab);
  if (auto taken = input_.Take(runs, shape_); !taken) return tl::unexpected(taken.error());
  if (auto fits = input_.CheckRows(logits, shape_.vocab); !fits) return tl::unexpected(fits.error());
  if (input_.tokens.count() == 0) return RunCost{};
  Layers();
  return Cost(input_.wanted.empty() ? 0 : HeadOfLikeliest(best), start);
}

void CpuExecutor::Layers() {
  rotary_.Fill(input_.tokens.positions);
  if (!model_.layerwise()) OrderForFfn();
  chosen_bytes_ = 0;
  Embed();
  for (size_t i = 0; i < model_.layers().size(); ++i) {
    Attention(model_.layers()[i], i);
    Ffn(model_.layers()[i]);
  }
}

void CpuExecutor::Embed() {
  const int64_t width = model_.config().hidden_size;
  workers_->Run(input_.tokens.count(), [&](int64_t t, int) {
    model_.embedding().Row(input_.tokens.ids[static_cast<size_t>(t)], x_.data() + t * width);
  });
}

void CpuExecutor::Norm(const float* from, const float* weight, int64_t rows, float* to) {
  const kernels::TokenEngine& engine = *kernels::TokenEngines().front();
  const int64_t width = model_.config().hidden_size;
  const auto eps = static_cast<float>(model_.config().rms_eps);
  workers_->Run(rows, [&](int64_t t, int) { engine.norm(from + t * width, weight, width, eps, to + t * width); });
}

void CpuExecutor::Attention(const CpuLayer& layer, size_t index) {
  const spec::Config& config = model_.config();
  const int64_t count = input_.tokens.count();
  Norm(x_.data(), layer.attn_norm.data(), count, normed_.data());
  kernels::Linear(layer.qkv, {normed_.data(), count, qkv_.data(), layer.qkv.rows()}, scratch_, *workers_);
  const float scale = 1 / std::sqrt(static_cast<float>(config.head_dim));
  caches_[index].Attend(input_.tokens, rotary_, {qkv_.data(), mixed_.data(), config.windows[index], scale}, scratch_,
                        *workers_);
  kernels::Linear(layer.o, {mixed_.data(), count, x_.data(), config.hidden_size, kernels::Into::kAdd}, scratch_,
                  *workers_);
}

// By the layer's own router, the best of each token; the lowest of equals.
void CpuExecutor::ChooseExperts(const CpuLayer& layer) {
  const int64_t count = input_.tokens.count(), experts = model_.experts();
  Norm(x_.data(), layer.ffn_norm.data(), count, normed_.data());
  chosen_.resize(static_cast<size_t>(count * experts));
  kernels::Linear(layer.router, {normed_.data(), count, chosen_.data(), experts}, scratch_, *workers_);
  uint32_t set = 0;
  for (int64_t t = 0; t < count; ++t) {
    const auto first = chosen_.begin() + t * experts;
    const auto best = std::max_element(first, first + experts) - first;
    input_.experts[static_cast<size_t>(t)] = static_cast<uint8_t>(best);
    set |= 1U << best;
  }
  chosen_bytes_ += layer.ffn_bytes[set];
  OrderForFfn();
}

// The FFN takes kDecodeTokensMax tokens at a time. A token has one expert in all layers, so one order for the whole
// pass lets each such group read few experts; a token's result does not depend on its group.
void CpuExecutor::OrderForFfn() {
  ffn_order_.resize(input_.experts.size());
  std::iota(ffn_order_.begin(), ffn_order_.end(), int64_t{0});
  if (input_.tokens.count() > kernels::kDecodeTokensMax)
    std::ranges::stable_sort(ffn_order_, {}, [&](int64_t t) { return input_.experts[static_cast<size_t>(t)]; });
  ffn_experts_.clear();
  for (const int64_t t : ffn_order_) ffn_experts_.push_back(input_.experts[static_cast<size_t>(t)]);
}

void CpuExecutor::Ffn(const CpuLayer& layer) {
  if (model_.layerwise()) ChooseExperts(layer);
  const int64_t width = model_.config().hidden_size, count = input_.tokens.count();
  const auto eps = static_cast<float>(model_.config().rms_eps);
  const kernels::TokenEngine& token_engine = *kernels::TokenEngines().front();
  const kernels::DecodeEngine& engine = *kernels::DecodeEngines(model_.number()).front();
  const auto row = [&](int64_t i) { return x_.data() + ffn_order_[static_cast<size_t>(i)] * width; };
  const bool in_place = count <= kernels::kDecodeTokensMax;  // the order of the tokens is their own
  if (!in_place || !model_.layerwise())                      // else ChooseExperts has left them so
    workers_->Run(count, [&](int64_t i, int) {
      token_engine.norm(row(i), layer.ffn_norm.data(), width, eps, normed_.data() + i * width);
    });
  const auto into = in_place ? kernels::Into::kAdd : kernels::Into::kSet;
  for (int64_t first = 0; first < count; first += kernels::kDecodeTokensMax) {
    const int64_t some = std::min(count - first, kernels::kDecodeTokensMax);
    float* rows = normed_.data() + first * width;
    const std::span experts = std::span(ffn_experts_).subspan(static_cast<size_t>(first), static_cast<size_t>(some));
    const kernels::FloatBatch batch{rows, in_place ? x_.data() : rows, experts, into};
    const auto done = kernels::Decode(layer.ffn, batch, engine, scratch_, *workers_);
    OUTRIDER_CHECK(done, done.error().message);  // sizes and experts were checked in Take
  }
  if (in_place) return;
  workers_->Run(count, [&](int64_t i, int) {
    float* to = row(i);
    const float* from = normed_.data() + i * width;
    for (int64_t j = 0; j < width; ++j) to[j] += from[j];
  });
}

// Into normed_: the rows whose logits are wanted, as the head takes them.
void CpuExecutor::NormWanted() {
  const int64_t width = model_.config().hidden_size;
  for (size_t r = 0; r < input_.wanted.size(); ++r)
    std::copy_n(x_.data() + input_.wanted[r] * width, width, normed_.data() + static_cast<int64_t>(r) * width);
  Norm(normed_.data(), model_.norm().data(), std::ssize(input_.wanted), normed_.data());
}

void CpuExecutor::Head(std::span<float> logits) {
  NormWanted();
  kernels::Linear(model_.head(), {normed_.data(), std::ssize(input_.wanted), logits.data(), shape_.vocab}, scratch_,
                  *workers_);
}

// Returns the bytes that were read.
int64_t CpuExecutor::HeadOfLikeliest(std::span<int64_t> best) {
  const HeadScreen& screen = model_.head_screen();
  if (screen.on()) {
    NormWanted();
    if (const auto read = screen.Likeliest(model_.head(), normed_.data(), best, screen_memory_, *workers_))
      return *read + screen.bytes() + std::ssize(model_.norm()) * 4;
  }
  const auto vocab = static_cast<size_t>(shape_.vocab);
  std::vector<float>& memory = screen_memory_.logits;
  if (memory.size() < best.size() * vocab) memory.resize(best.size() * vocab);
  const std::span<float> logits = std::span(memory).first(best.size() * vocab);
  Head(logits);
  workers_->Run(std::ssize(best), [&](int64_t row, int) {
    best[static_cast<size_t>(row)] = sampling::LikeliestId(logits.subspan(static_cast<size_t>(row) * vocab, vocab));
  });
  return model_.HeadBytes();
}

// head_bytes: read of the head or its copy.
RunCost CpuExecutor::Cost(int64_t head_bytes, int64_t start_ns) const {
  uint16_t set = 0;
  for (const uint8_t e : input_.experts) set = static_cast<uint16_t>(set | 1U << e);
  RunCost cost;
  cost.ffn_bytes = model_.layerwise() ? chosen_bytes_ : model_.FfnBytes(set);
  cost.weight_bytes = cost.ffn_bytes + model_.LayerBytes() + head_bytes;
  if (head_bytes < model_.HeadBytes() || !model_.config().tied) {
    const std::set<int32_t> rows(input_.tokens.ids.begin(), input_.tokens.ids.end());
    cost.weight_bytes += static_cast<int64_t>(rows.size()) * model_.embedding().row_bytes();
  }
  cost.seconds = static_cast<double>(base::NowNs() - start_ns) * 1e-9;
  return cost;
}

std::vector<float> RotaryFrequencies(const spec::Config& config) {
  using Kind = spec::RopeScaling::Kind;
  const spec::RopeScaling& scaling = config.rope_scaling;
  std::vector<float> frequencies;
  for (int64_t i = 0; i < config.head_dim; i += 2) {
    const float share = static_cast<float>(i) / static_cast<float>(config.head_dim);
    const float plain = 1 / std::pow(static_cast<float>(config.rope_theta), share);
    const auto stretched = static_cast<float>(plain / scaling.factor);
    const double wavelength = 2 * std::numbers::pi / plain, original = static_cast<double>(scaling.original_positions);
    const double low = scaling.low_frequency_factor, high = scaling.high_frequency_factor;
    if (scaling.kind == Kind::kNone) {
      frequencies.push_back(plain);
    } else if (scaling.kind == Kind::kLinear || wavelength > original / low) {
      frequencies.push_back(stretched);
    } else if (wavelength < original / high) {
      frequencies.push_back(plain);
    } else {  // between short waves, which stay, and long ones, which are stretched
      const double smooth = (original / wavelength - low) / (high - low);
      frequencies.push_back(static_cast<float>((1 - smooth) * stretched + smooth * plain));
    }
  }
  return frequencies;
}

}  // namespace outrider::serve
