#include "serve_gpu/gpu_executor.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "base/clock.h"
#include "kernels/engine.h"
#include "model/rotary.h"

namespace outrider::serve_gpu {

using kernels::kPageTokens;
using serve::ModelShape;
using serve::RunCost;
using serve::TokenRun;

namespace {

constexpr int64_t kBuckets[] = {1, 2, 4, 8, 16, 32};
static_assert(kBuckets[std::size(kBuckets) - 1] == kRowsMax);

int64_t BucketOf(int64_t count) { return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count))); }
int KindOf(int64_t bucket, bool head) { return 2 * std::countr_zero(static_cast<uint64_t>(bucket)) + (head ? 1 : 0); }

at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::linear(x, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
}

// Staged numbers: ids, positions, experts (four to a number), pages.
constexpr int64_t kPositionsAt = kRowsMax, kExpertsAt = 2 * kRowsMax, kPagesAt = kExpertsAt + kRowsMax / 4;

}  // namespace

base::Result<std::unique_ptr<GpuExecutor>> GpuExecutor::Make(GpuModel model, const serve::PassLimits& limits,
                                                             const PassForm& form) {
  const at::NoGradGuard no_grad;
  const spec::Config& config = model.config();
  const auto shape = serve::ShapeOf(config, model.experts(), limits);
  if (!shape) return tl::unexpected(shape.error());
  auto made = std::unique_ptr<GpuExecutor>(new GpuExecutor(std::move(model), *shape, form));
  if (form.reference || !made->model_.device().is_cuda()) {
    made->device_ = MakeReference(made->model_, made->staged_);
  } else {
    auto device = MakeCuda(made->model_, made->staged_);
    if (!device) return tl::unexpected(device.error());
    made->device_ = *std::move(device);
  }
  made->Stage({});
  for (const int64_t bucket : kBuckets)
    for (const bool head : {false, true}) made->device_->Run(KindOf(bucket, head), [&] { made->Body(bucket, head); });
  return made;
}

GpuExecutor::GpuExecutor(GpuModel model, const ModelShape& shape, const PassForm& form)
    : model_(std::move(model)),
      shape_(shape),
      exact_(form.exact),
      table_((shape.context + kPageTokens - 1) / kPageTokens) {
  const spec::Config& config = model_.config();
  const auto options = at::TensorOptions().device(model_.device()).dtype(model_.dtype());
  staged_ = at::zeros({kPagesAt + kRowsMax * table_}, options.dtype(at::kInt));
  rows_.ids = staged_.slice(0, 0, kRowsMax);
  rows_.positions = staged_.slice(0, kPositionsAt, kExpertsAt);
  rows_.experts = staged_.slice(0, kExpertsAt, kPagesAt).view(at::kByte);
  rows_.pages = staged_.slice(0, kPagesAt).view({kRowsMax, table_});
  frequencies_ = model::InverseFrequencies(config, model_.device()).unsqueeze(0);
  for (int64_t l = 0; l < config.layers; ++l)
    for (auto* caches : {&keys_, &values_})
      caches->push_back(at::zeros({shape.kv_pages + 1, config.kv_heads, kPageTokens, config.head_dim}, options));
  mixed_ = at::zeros({kRowsMax, config.heads * config.head_dim}, options);
  ffn_ = at::zeros({kRowsMax, config.hidden_size}, options);
  logits_ = at::zeros({kRowsMax, config.vocab}, options.dtype(at::kFloat));
  best_ = at::zeros({kRowsMax}, options.dtype(at::kLong));
}

void GpuExecutor::FillPages() {
  const at::NoGradGuard no_grad;
  for (const auto* caches : {&keys_, &values_})
    for (const at::Tensor& cache : *caches) cache.normal_(0, 0.5);
  (void)keys_.front().select(0, 0).sum().item();  // waits: passes run on a stream of their own
}

double GpuExecutor::LaunchAgain(int times) {
  const at::NoGradGuard no_grad;
  const int64_t count = input_.tokens.count();
  if (count == 0) return 0;
  const Group group = GroupAt((count - 1) / kRowsMax * kRowsMax);
  const int64_t start = base::NowNs();
  for (int i = 0; i < times; ++i) Launch(group);
  device_->Fetch(best_, 0, 0);
  return static_cast<double>(base::NowNs() - start) * 1e-9;
}

base::Result<RunCost> GpuExecutor::Run(std::span<const TokenRun> runs, std::span<float> logits) {
  return Pass(runs, logits, shape_.vocab, logits_);
}

base::Result<RunCost> GpuExecutor::RunGreedy(std::span<const TokenRun> runs, std::span<int64_t> best) {
  return Pass(runs, best, 1, best_);
}

template <class Number>
base::Result<RunCost> GpuExecutor::Pass(std::span<const TokenRun> runs, std::span<Number> out, int64_t columns,
                                        const at::Tensor& from) {
  const at::NoGradGuard no_grad;
  const int64_t start = base::NowNs();
  if (auto taken = input_.Take(runs, shape_); !taken) return tl::unexpected(taken.error());
  if (auto fits = input_.CheckRows(out.size(), columns); !fits) return tl::unexpected(fits.error());
  Number* to = out.data();
  for (int64_t first = 0; first < input_.tokens.count(); first += kRowsMax) {
    const Group group = GroupAt(first);
    Stage(group);
    Launch(group);
    const auto* fetched = static_cast<const Number*>(device_->Fetch(from, group.wanted_first, group.wanted_count));
    for (const int64_t token : WantedOf(group))
      to = std::copy_n(fetched + (token - first - group.wanted_first) * columns, columns, to);
  }
  RunCost cost = Cost();
  cost.seconds = static_cast<double>(base::NowNs() - start) * 1e-9;
  return cost;
}

std::span<const int64_t> GpuExecutor::WantedOf(const Group& group) const {
  const auto begin = std::ranges::lower_bound(input_.wanted, group.first);
  return {begin, std::lower_bound(begin, input_.wanted.end(), group.first + group.count)};
}

Group GpuExecutor::GroupAt(int64_t first) const {
  Group group{.first = first, .count = std::min(kRowsMax, input_.tokens.count() - first)};
  const std::span<const int64_t> wanted = WantedOf(group);
  if (wanted.empty()) return group;
  group.wanted_first = wanted.front() - first;
  group.wanted_count = wanted.back() + 1 - wanted.front();
  return group;
}

// Padding has the expert of the first row, so it reads no channel of its own, and writes to the page behind all others.
void GpuExecutor::Stage(const Group& group) {
  int32_t* ids = device_->staging();
  auto* experts = reinterpret_cast<uint8_t*>(ids + kExpertsAt);
  const auto scratch_page = static_cast<int32_t>(shape_.kv_pages);
  std::fill_n(ids, kExpertsAt, 0);
  std::fill_n(experts, kRowsMax, group.count > 0 ? input_.experts[static_cast<size_t>(group.first)] : uint8_t{0});
  std::fill_n(ids + kPagesAt, kRowsMax * table_, scratch_page);
  for (int64_t row = 0; row < group.count; ++row) {
    const auto t = static_cast<size_t>(group.first + row);
    ids[row] = input_.tokens.ids[t];
    ids[kPositionsAt + row] = static_cast<int32_t>(input_.tokens.positions[t]);
    experts[row] = input_.experts[t];
    std::copy_n(input_.tokens.pages[t], input_.tokens.positions[t] / kPageTokens + 1, ids + kPagesAt + row * table_);
  }
}

void GpuExecutor::Launch(const Group& group) {
  const int64_t bucket = BucketOf(group.count);
  const bool head = group.wanted_count > 0;
  device_->Run(KindOf(bucket, head), [&] { Body(bucket, head); });
}

void GpuExecutor::Body(int64_t rows, bool head) {
  const spec::Config& config = model_.config();
  const int64_t n = exact_ ? kRowsMax : rows;  // of library operators
  const auto norm = [&](const at::Tensor& x, const at::Tensor& weight) {
    return at::rms_norm(x, {config.hidden_size}, weight, config.rms_eps);
  };
  at::Tensor x = at::embedding(model_.embed(), rows_.ids.slice(0, 0, n));
  const at::Tensor angles = rows_.positions.slice(0, 0, n).to(at::kFloat).unsqueeze(1) * frequencies_;
  const at::Tensor cos = angles.cos(), sin = angles.sin(), mixed = mixed_.slice(0, 0, n), ffn = ffn_.slice(0, 0, n);
  for (size_t l = 0; l < model_.layers().size(); ++l) {
    const GpuLayer& layer = model_.layers()[l];
    const at::Tensor qkv = Linear(norm(x, layer.attn_norm), layer.qkv, layer.qkv_bias);
    device_->Attend(rows_, {.qkv = qkv,
                            .cos = cos,
                            .sin = sin,
                            .keys = keys_[l],
                            .values = values_[l],
                            .out = mixed,
                            .rows = rows,
                            .window = config.windows[l]});
    x.addmm_(mixed, layer.o.t());
    if (layer.o_bias.defined()) x.add_(layer.o_bias);
    device_->Ffn(rows_, layer, rows, norm(x, layer.ffn_norm), ffn);
    x.add_(ffn);
  }
  if (!head) return;
  const at::Tensor logits = logits_.slice(0, 0, n);
  logits.copy_(at::linear(norm(x, model_.norm()), model_.head()));
  best_.slice(0, 0, n).copy_(logits.argmax(-1));
}

RunCost GpuExecutor::Cost() const {
  RunCost cost;
  for (int64_t first = 0; first < input_.tokens.count(); first += kRowsMax) {
    const Group group = GroupAt(first);
    uint16_t set = 0;
    std::set<int32_t> ids;
    for (int64_t t = first; t < first + group.count; ++t) {
      set = static_cast<uint16_t>(set | 1U << input_.experts[static_cast<size_t>(t)]);
      ids.insert(input_.tokens.ids[static_cast<size_t>(t)]);
    }
    const int64_t ffn = FfnBytes(set), embed = static_cast<int64_t>(model_.embed().nbytes()) / shape_.vocab;
    cost.ffn_bytes += ffn;
    cost.weight_bytes += ffn + model_.LayerBytes() + static_cast<int64_t>(ids.size()) * embed;
    if (group.wanted_count > 0) cost.weight_bytes += model_.HeadBytes();
  }
  return cost;
}

}  // namespace outrider::serve_gpu
