#include "serve/cpu/cpu_router.h"

#include <algorithm>
#include <utility>

#include "kernels/cpu.h"
#include "kernels/linear.h"

namespace outrider::serve {
namespace {

using kernels::Matrix;
using kernels::Number;

constexpr int64_t kBlockTokens = 128;  // of one pass through the block; bits do not depend on it

Matrix PackRows(const RouterMatrix& from, int64_t columns) {
  const auto read = [&](int64_t row, float* to) { std::copy_n(from.weight.data() + row * columns, columns, to); };
  return Matrix::Pack(std::ssize(from.bias), columns, Number::kF32, read, from.bias);
}

}  // namespace

CpuRouter::Packed CpuRouter::Pack(const RouterSpec& spec, const RouterWeights& weights) {
  const int64_t w = spec.width;
  Packed packed;
  if (spec.context == RouterContext::kCausal) {
    packed.qkv = PackRows(weights.qkv, w);
    packed.o = PackRows(weights.o, w);
  }
  packed.w1 = PackRows(weights.w1, w);
  packed.w2 = PackRows(weights.w2, w);
  packed.head = PackRows(weights.head, w);
  packed.attn_norm = weights.attn_norm;
  packed.mlp_norm = weights.mlp_norm;
  packed.norm = weights.norm;
  const WeightRows& table = weights.table;
  const Number number = table.dtype == files::Dtype::kBF16 ? Number::kBf16 : Number::kF32;  // exact in either
  packed.table = Matrix::Pack(spec.vocab, w, number, [&](int64_t row, float* to) { table.Read(row, w, to); }, {});
  return packed;
}

base::Result<std::unique_ptr<CpuRouter>> CpuRouter::Make(const RouterSpec& spec, const WeightSource& source,
                                                         int64_t backbone_width, const ModelShape& shape,
                                                         std::shared_ptr<kernels::Workers> workers) {
  if (auto fits = CheckRouter(spec, backbone_width, shape); !fits) return tl::unexpected(fits.error());
  const auto weights = ReadRouter(spec, source, backbone_width);
  if (!weights) return tl::unexpected(weights.error());
  return std::unique_ptr<CpuRouter>(
      new CpuRouter(spec, Pack(spec, *weights), weights->frequencies, shape, std::move(workers)));
}

CpuRouter::CpuRouter(const RouterSpec& spec, Packed weights, std::vector<float> frequencies, const ModelShape& shape,
                     std::shared_ptr<kernels::Workers> workers)
    : LogitsRouter(spec, shape),
      weights_(std::move(weights)),
      workers_(std::move(workers)),
      rotary_(std::move(frequencies)) {
  if (spec.context == RouterContext::kCausal)
    cache_.emplace_back(kernels::KvShape{spec.heads, 1, spec.head_dim()}, shape.route_pages);
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

// Tokens [first, first + count) through the block; they see those before them, and each other.
void CpuRouter::Block(int64_t first, int64_t count, float* logits) {
  const kernels::TokenEngine& engine = *kernels::TokenEngines().front();
  const int64_t w = spec_.width;
  const auto part = [&](const auto& all) {
    return std::span(all).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  };
  const auto norm = [&](const std::vector<float>& weight) {
    workers_->Run(count, [&](int64_t t, int) {
      engine.norm(x_.data() + t * w, weight.data(), w, kRouterNormEps, normed_.data() + t * w);
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
    cache_.front().Attend(some, rotary_, {qkv_.data(), inner_.data(), 0, spec_.score_scale()}, scratch_, *workers_);
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
  auto taken = Take(runs, logits.size());
  if (!taken) return tl::unexpected(taken.error());
  tokens_ = *std::move(taken);
  for (int64_t first = 0; first < tokens_.count(); first += kBlockTokens)
    Block(first, std::min(kBlockTokens, tokens_.count() - first), logits.data() + first * spec_.experts);
  return {};
}

}  // namespace outrider::serve
