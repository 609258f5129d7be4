#include "serve/cpu/cpu_router.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "kernels/cpu.h"
#include "kernels/linear.h"

namespace outrider::serve {
namespace {

using kernels::Matrix;
using kernels::Number;

constexpr float kNormEps = 1e-6F;
constexpr int64_t kBlockTokens = 128;  // of one pass through the block; bits do not depend on it

std::vector<float> Frequencies(const RouterSpec& spec) {
  const int64_t half = spec.width / spec.heads / 2;
  std::vector<float> frequencies;
  for (int64_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(i) * static_cast<float>(-1.0 / static_cast<double>(half));
    frequencies.push_back(std::pow(static_cast<float>(spec.rope_base), exponent));
  }
  return frequencies;
}

// One projection with its bias, the rows of several names behind each other.
base::Result<Matrix> Projection(const WeightSource& source, const std::vector<std::string>& names, int64_t rows,
                                int64_t columns) {
  std::vector<WeightRows> weights;
  std::vector<float> bias;
  for (const std::string& name : names) {
    const auto found = FindMatrix(source, name + ".weight", rows, columns);
    if (!found) return tl::unexpected(found.error());
    const auto own = FindVector(source, name + ".bias", rows);
    if (!own) return tl::unexpected(own.error());
    weights.push_back(*found);
    bias.insert(bias.end(), own->begin(), own->end());
  }
  const auto read = [&](int64_t row, float* to) { weights[static_cast<size_t>(row / rows)].Read(row % rows, to); };
  return Matrix::Pack(rows * static_cast<int64_t>(names.size()), columns, Number::kF32, read, bias);
}

}  // namespace

base::Result<CpuRouter::Weights> CpuRouter::Read(const RouterSpec& spec, const WeightSource& source,
                                                 int64_t backbone_width) {
  Weights weights;
  base::Error error;
  const auto take = [&](auto result, auto& to) {
    if (result)
      to = *std::move(result);
    else if (error.code.empty())
      error = result.error();
  };
  const int64_t w = spec.width;
  if (spec.context == RouterContext::kCausal) {
    take(FindVector(source, "block.attn_norm.weight", w), weights.attn_norm);
    take(Projection(source, {"block.q", "block.k", "block.v"}, w, w), weights.qkv);
    take(Projection(source, {"block.o"}, w, w), weights.o);
  }
  take(FindVector(source, "block.mlp_norm.weight", w), weights.mlp_norm);
  take(Projection(source, {"block.w1"}, w, w), weights.w1);
  take(Projection(source, {"block.w2"}, w, w), weights.w2);
  take(FindVector(source, "norm.weight", w), weights.norm);
  take(Projection(source, {"head"}, spec.experts, w), weights.head);
  const bool own = spec.table == RouterTable::kOwn;
  WeightRows rows;
  take(FindMatrix(source, own ? "embed.weight" : "model.embed_tokens.weight", spec.vocab, own ? w : backbone_width),
       rows);
  if (!error.code.empty()) return tl::unexpected(error);
  const Number number = rows.dtype == files::Dtype::kBF16 ? Number::kBf16 : Number::kF32;  // exact in either
  weights.table = Matrix::Pack(spec.vocab, w, number, [&](int64_t row, float* to) { rows.Read(row, w, to); }, {});
  return weights;
}

base::Result<std::unique_ptr<CpuRouter>> CpuRouter::Make(const RouterSpec& spec, const WeightSource& source,
                                                         int64_t backbone_width, const ModelShape& shape,
                                                         std::shared_ptr<kernels::Workers> workers) {
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
  auto weights = Read(spec, source, backbone_width);
  if (!weights) return tl::unexpected(weights.error());
  return std::unique_ptr<CpuRouter>(new CpuRouter(spec, *std::move(weights), shape, std::move(workers)));
}

CpuRouter::CpuRouter(const RouterSpec& spec, Weights weights, const ModelShape& shape,
                     std::shared_ptr<kernels::Workers> workers)
    : spec_(spec),
      weights_(std::move(weights)),
      shape_(shape),
      workers_(std::move(workers)),
      rotary_(Frequencies(spec)) {
  const int64_t head = spec.width / spec.heads;
  if (spec.context == RouterContext::kCausal)
    cache_.emplace_back(kernels::KvShape{spec.heads, 1, head}, shape.route_pages);
  const auto numbers = static_cast<size_t>(kBlockTokens * spec.width);
  x_.resize(numbers);
  normed_.resize(numbers);
  inner_.resize(numbers);
  qkv_.resize(3 * numbers);
}

int64_t CpuRouter::WeightBytes() const {
  int64_t bytes = 0;
  for (const Matrix* m : {&weights_.qkv, &weights_.o, &weights_.w1, &weights_.w2, &weights_.head}) bytes += m->bytes();
  for (const auto* norm : {&weights_.attn_norm, &weights_.mlp_norm, &weights_.norm})
    bytes += static_cast<int64_t>(norm->size()) * 4;
  return bytes;
}

base::Result<void> CpuRouter::Take(std::span<const RouteRun> runs) {
  tokens_ = {};
  for (size_t r = 0; r < runs.size(); ++r) {
    if (runs[r].previous != kNoExpert && runs[r].previous >= spec_.experts)
      return base::Fail("E_EXPERTS", "run " + std::to_string(r) + ": previous: found " +
                                         std::to_string(runs[r].previous) + ", expected 0 to " +
                                         std::to_string(spec_.experts - 1) + ", or none");
    const PassTokens::Limits limits{spec_.vocab, shape_.context, shape_.route_pages};
    if (auto ok = tokens_.Add(r, runs[r].ids, runs[r].position, runs[r].route_pages, limits); !ok) return ok;
  }
  return {};
}

// Tokens [first, first + count) through the block; they see those before them, and each other.
void CpuRouter::Block(int64_t first, int64_t count, float* logits) {
  const kernels::TokenEngine& engine = *kernels::TokenEngines().front();
  const int64_t w = spec_.width;
  const auto part = [&](const auto& all) {
    return std::span(all).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  };
  const auto norm = [&](const std::vector<float>& weight) {
    workers_->Run(count, [&](int64_t t, int) {
      engine.norm(x_.data() + t * w, weight.data(), w, kNormEps, normed_.data() + t * w);
    });
  };
  workers_->Run(
      count, [&](int64_t t, int) { weights_.table.Row(part(tokens_.ids)[static_cast<size_t>(t)], x_.data() + t * w); });
  if (!cache_.empty()) {
    PassTokens some;
    some.ids.assign(part(tokens_.ids).begin(), part(tokens_.ids).end());
    some.positions.assign(part(tokens_.positions).begin(), part(tokens_.positions).end());
    some.pages.assign(part(tokens_.pages).begin(), part(tokens_.pages).end());
    rotary_.Fill(some.positions);
    norm(weights_.attn_norm);
    kernels::Linear(weights_.qkv, {normed_.data(), count, qkv_.data(), 3 * w}, scratch_, *workers_);
    const auto head = static_cast<float>(w / spec_.heads);
    const float scale = spec_.scale == ScoreScale::kNone ? 1 : 1 / std::sqrt(head);
    cache_.front().Attend(some, rotary_, {qkv_.data(), inner_.data(), 0, scale}, scratch_, *workers_);
    kernels::Linear(weights_.o, {inner_.data(), count, x_.data(), w, kernels::Into::kAdd}, scratch_, *workers_);
  }
  norm(weights_.mlp_norm);
  kernels::Linear(weights_.w1, {normed_.data(), count, inner_.data(), w}, scratch_, *workers_);
  engine.silu(inner_.data(), count * w);
  kernels::Linear(weights_.w2, {inner_.data(), count, x_.data(), w, kernels::Into::kAdd}, scratch_, *workers_);
  norm(weights_.norm);
  kernels::Linear(weights_.head, {normed_.data(), count, logits, spec_.experts}, scratch_, *workers_);
}

base::Result<void> CpuRouter::Logits(std::span<const RouteRun> runs, std::span<float> logits) {
  if (auto ok = Take(runs); !ok) return ok;
  if (static_cast<int64_t>(logits.size()) != tokens_.count() * spec_.experts)
    return base::Fail("E_SHAPE", "found room for " + std::to_string(logits.size()) + " logits, expected " +
                                     std::to_string(tokens_.count()) + " rows of " + std::to_string(spec_.experts));
  for (int64_t first = 0; first < tokens_.count(); first += kBlockTokens)
    Block(first, std::min(kBlockTokens, tokens_.count() - first), logits.data() + first * spec_.experts);
  return {};
}

base::Result<void> CpuRouter::Route(std::span<const RouteRun> runs, std::span<ExpertId> experts) {
  size_t count = 0;
  for (const RouteRun& run : runs) count += run.ids.size();
  if (experts.size() != count)
    return base::Fail("E_SHAPE", "found room for " + std::to_string(experts.size()) +
                                     " experts, expected one for each of " + std::to_string(count) + " tokens");
  const auto columns = static_cast<size_t>(spec_.experts);
  logits_.resize(count * columns);
  if (auto ok = Logits(runs, logits_); !ok) return ok;
  size_t at = 0;
  for (const RouteRun& run : runs) {
    ExpertId previous = run.previous;
    for (size_t i = 0; i < run.ids.size(); ++i, ++at)
      experts[at] = previous = ChooseExpert(std::span(logits_).subspan(at * columns, columns), spec_.tau, previous);
  }
  return {};
}

ExpertId ChooseExpert(std::span<const float> logits, double tau, ExpertId previous) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) best = logits[i] > logits[best] ? i : best;
  if (previous == kNoExpert || tau <= 0) return static_cast<ExpertId>(best);
  const bool stays = static_cast<double>(logits[best]) - logits[previous] < tau;
  return stays ? previous : static_cast<ExpertId>(best);
}

}  // namespace outrider::serve
