#include "serve_gpu/gpu_executor.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

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
using serve::PassInput;
using serve::RunCost;
using serve::TokenRun;

namespace {

constexpr int64_t kBuckets[] = {1, 2, 4, 8, 16, 32};
static_assert(kBuckets[std::size(kBuckets) - 1] == kRowsMax);
static_assert(kChunkMax % kProductRows == 0 && kChunkMax % kRowsMax == 0);

int64_t BucketOf(int64_t count) { return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count))); }
int KindOf(int64_t bucket, bool head) { return 2 * std::countr_zero(static_cast<uint64_t>(bucket)) + (head ? 1 : 0); }

// Rows [first, first + rows) of the product by itself: library products change bits with their number of rows.
at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, int64_t rows) {
  const auto added = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  if (x.size(0) == rows) return at::linear(x, weight, added);
  const at::Tensor out = at::empty({x.size(0), weight.size(0)}, x.options());
  for (int64_t first = 0; first < x.size(0); first += rows)
    out.slice(0, first, first + rows).copy_(at::linear(x.slice(0, first, first + rows), weight, added));
  return out;
}

void AddProduct(const at::Tensor& to, const at::Tensor& x, const at::Tensor& weight, int64_t rows) {
  for (int64_t first = 0; first < x.size(0); first += rows)
    to.slice(0, first, first + rows).addmm_(x.slice(0, first, first + rows), weight.t());
}

Rows RowsOf(const at::Tensor& staged, const RowPlaces& places) {
  const auto part = [&](int64_t first, int64_t end) { return staged.slice(0, first, end); };
  Rows rows;
  rows.ids = part(RowPlaces::ids, RowPlaces::positions);
  rows.positions = part(RowPlaces::positions, RowPlaces::experts);
  rows.experts = part(RowPlaces::experts, RowPlaces::pages).view(at::kByte);
  rows.pages = part(RowPlaces::pages, places.size()).view({kRowsMax, places.table});
  return rows;
}

Rows RowsOf(const at::Tensor& staged, const ChunkPlaces& places) {
  const auto part = [&](int64_t first, int64_t end) { return staged.slice(0, first, end); };
  Rows rows;
  rows.ids = part(ChunkPlaces::ids, ChunkPlaces::positions);
  rows.positions = part(ChunkPlaces::positions, ChunkPlaces::texts);
  rows.texts = part(ChunkPlaces::texts, ChunkPlaces::wanted);
  rows.experts = part(ChunkPlaces::experts, ChunkPlaces::tiles).view(at::kByte);
  rows.tiles = part(ChunkPlaces::tiles, ChunkPlaces::pages).view({kTilesMax, kTileNumbers});
  rows.pages = part(ChunkPlaces::pages, places.size()).view({kChunkTexts, places.table});
  return rows;
}

}  // namespace

base::Result<std::unique_ptr<GpuExecutor>> GpuExecutor::Make(GpuModel model, const serve::PassLimits& limits,
                                                             const PassForm& form) {
  const at::NoGradGuard no_grad;
  const spec::Config& config = model.config();
  auto shape = serve::ShapeOf(config, model.experts(), limits);
  if (!shape) return tl::unexpected(shape.error());
  shape->prompts_apart = true;
  if (form.library && !model.layers().front().gate_up.defined())
    return base::Fail("E_CONFIG", "library: found a model without a library's FFN, expected a dense one with it");
  auto made = std::unique_ptr<GpuExecutor>(new GpuExecutor(std::move(model), *shape, form));
  if (form.reference || !made->model_.device().is_cuda()) {
    made->device_ = MakeReference(made->model_, made->staged_);
  } else {
    auto device = MakeCuda(made->model_, made->staged_);
    if (!device) return tl::unexpected(device.error());
    made->device_ = *std::move(device);
  }
  if (form.wrap) made->device_ = form.wrap(std::move(made->device_));
  StageRows({}, 0, static_cast<int32_t>(shape->kv_pages), made->row_places_, made->device_->staging());
  for (const int64_t bucket : kBuckets)
    for (const bool head : {false, true}) made->device_->Run(KindOf(bucket, head), [&] { made->Body(bucket, head); });
  return made;
}

GpuExecutor::GpuExecutor(GpuModel model, const ModelShape& shape, const PassForm& form)
    : model_(std::move(model)),
      shape_(shape),
      exact_(form.exact),
      library_(form.library),
      row_places_((shape.context + kPageTokens - 1) / kPageTokens),
      chunk_places_(row_places_.table) {
  const spec::Config& config = model_.config();
  const auto options = at::TensorOptions().device(model_.device()).dtype(model_.dtype());
  staged_.rows = at::zeros({row_places_.size()}, options.dtype(at::kInt));
  staged_.chunk = at::zeros({chunk_places_.size()}, options.dtype(at::kInt));
  rows_ = RowsOf(staged_.rows, row_places_);
  chunk_rows_ = RowsOf(staged_.chunk, chunk_places_);
  chunk_wanted_ = staged_.chunk.slice(0, ChunkPlaces::wanted, ChunkPlaces::experts);
  frequencies_ = model::InverseFrequencies(config, model_.device()).unsqueeze(0);
  for (int64_t l = 0; l < config.layers; ++l)
    for (auto* caches : {&keys_, &values_})
      caches->push_back(at::zeros({shape.kv_pages + 1, config.kv_heads, kPageTokens, config.head_dim}, options));
  mixed_ = at::zeros({kChunkMax, config.heads * config.head_dim}, options);
  ffn_ = at::zeros({kChunkMax, config.hidden_size}, options);
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
  if (launched_count_ == 0) return 0;
  const int64_t start = base::NowNs();
  for (int i = 0; i < times; ++i) Launch(launched_count_, launched_head_);
  device_->Fetch(best_, 0, 0);
  return static_cast<double>(base::NowNs() - start) * 1e-9;
}

base::Result<RunCost> GpuExecutor::Run(std::span<const TokenRun> runs, std::span<float> logits) {
  return Pass(runs, Output<float>{logits, shape_.vocab, logits_});
}

base::Result<RunCost> GpuExecutor::RunGreedy(std::span<const TokenRun> runs, std::span<int64_t> best) {
  return Pass(runs, Output<int64_t>{best, 1, best_});
}

template <class Number>
base::Result<RunCost> GpuExecutor::Pass(std::span<const TokenRun> runs, const Output<Number>& out) {
  const at::NoGradGuard no_grad;
  const int64_t start = base::NowNs();
  if (!lost_.empty()) return base::Fail("E_DEVICE", lost_);
  if (auto taken = input_.Take(runs, shape_); !taken) return tl::unexpected(taken.error());
  if (auto fits = input_.whole.CheckRows(out.rows.size(), out.columns); !fits) return tl::unexpected(fits.error());
  cost_ = {};
  try {
    RunPrompts(out);
    cost_.prompt_tokens = input_.prompt.tokens.count();
    if (cost_.prompt_tokens > 0) cost_.prompt_seconds = static_cast<double>(base::NowNs() - start) * 1e-9;
    RunWritten(out);
  } catch (const c10::Error& error) {
    lost_ = std::string("a pass failed: ") + error.what_without_backtrace();
    return base::Fail("E_DEVICE", lost_);
  }
  cost_.seconds = static_cast<double>(base::NowNs() - start) * 1e-9;
  return cost_;
}

template <class Number>
void GpuExecutor::RunPrompts(const Output<Number>& out) {
  const PassInput& input = input_.prompt;
  auto row = input_.prompt_rows.begin();
  for (int64_t first = 0; first < input.tokens.count();) {
    const Chunk chunk = StageChunk(input, first, chunk_places_, device_->chunk_staging());
    Rows rows = chunk_rows_;
    rows.tiles_used = chunk.tiles;
    at::Tensor x;
    device_->RunChunk(rows, chunk.tokens.count, [&] { x = ChunkBody(rows, chunk.tokens.count); });
    const auto wanted = static_cast<int64_t>(chunk.wanted.size());
    if (wanted == 0) device_->Fetch(best_, 0, 0);
    for (int64_t at = 0; at < wanted; at += kRowsMax) {
      device_->RunBehind([&] { Head(at::index_select(x, 0, chunk_wanted_.slice(0, at, at + kRowsMax))); });
      const int64_t count = std::min(kRowsMax, wanted - at);
      const auto* fetched = static_cast<const Number*>(device_->Fetch(out.from, 0, count));
      for (int64_t i = 0; i < count; ++i)
        std::copy_n(fetched + i * out.columns, out.columns, out.rows.data() + *row++ * out.columns);
    }
    CountCost(input, chunk.tokens, wanted > 0);
    first += chunk.tokens.count;
  }
}

template <class Number>
void GpuExecutor::RunWritten(const Output<Number>& out) {
  const PassInput& input = input_.written;
  auto row = input_.written_rows.begin();
  for (int64_t first = 0; first < input.tokens.count(); first += kRowsMax) {
    const Group group = StageRows(input, first, static_cast<int32_t>(shape_.kv_pages), row_places_, device_->staging());
    const auto wanted = WantedOf(input, group);
    Launch(group.count, !wanted.empty());
    const int64_t from = wanted.empty() ? first : wanted.front(), end = wanted.empty() ? first : wanted.back() + 1;
    const auto* fetched = static_cast<const Number*>(device_->Fetch(out.from, from - first, end - from));
    for (const int64_t token : wanted)
      std::copy_n(fetched + (token - from) * out.columns, out.columns, out.rows.data() + *row++ * out.columns);
    CountCost(input, group, !wanted.empty());
  }
}

void GpuExecutor::Launch(int64_t count, bool head) {
  const int64_t bucket = BucketOf(count);
  launched_count_ = count;
  launched_head_ = head;
  device_->Run(KindOf(bucket, head), [&] { Body(bucket, head); });
}

void GpuExecutor::Layers(const Rows& rows, int64_t count, at::Tensor& x, int64_t product_rows) {
  const spec::Config& config = model_.config();
  const int64_t n = x.size(0);
  const auto norm = [&](const at::Tensor& weight) {
    return at::rms_norm(x, {config.hidden_size}, weight, config.rms_eps);
  };
  const at::Tensor angles = Angles(rows, n);
  const at::Tensor cos = angles.cos(), sin = angles.sin(), mixed = mixed_.slice(0, 0, n), ffn = ffn_.slice(0, 0, n);
  for (size_t l = 0; l < model_.layers().size(); ++l) {
    const GpuLayer& layer = model_.layers()[l];
    const at::Tensor qkv = Linear(norm(layer.attn_norm), layer.qkv, layer.qkv_bias, product_rows);
    device_->Attend(rows, {.qkv = qkv,
                           .cos = cos,
                           .sin = sin,
                           .keys = keys_[l],
                           .values = values_[l],
                           .out = mixed,
                           .rows = count,
                           .window = config.windows[l]});
    AddProduct(x, mixed, layer.o, product_rows);
    if (layer.o_bias.defined()) x.add_(layer.o_bias);
    if (library_ && !rows.chunk()) {
      LibraryFfn(layer, norm(layer.ffn_norm), x);
      continue;
    }
    device_->Ffn(rows, layer, count, norm(layer.ffn_norm), ffn);
    x.add_(ffn);
  }
}

void GpuExecutor::LibraryFfn(const GpuLayer& layer, const at::Tensor& normed, at::Tensor& x) const {
  const at::Tensor both = at::linear(normed, layer.gate_up);
  const int64_t channels = both.size(1) / 2;
  x.addmm_(at::silu(both.slice(1, 0, channels)) * both.slice(1, channels), layer.down.t());
}

at::Tensor GpuExecutor::Angles(const Rows& rows, int64_t count) const {
  return rows.positions.slice(0, 0, count).to(at::kFloat).unsqueeze(1) * frequencies_;
}

void GpuExecutor::Body(int64_t rows, bool head) {
  if (!library_) {
    const at::Tensor angles = Angles(rows_, rows), logits = logits_.slice(0, 0, rows);
    const DecodePass pass{angles.cos(), angles.sin(), keys_, values_, logits, rows, head};
    if (device_->Decode(rows_, pass)) {
      if (head) device_->Likeliest(logits, best_.slice(0, 0, rows));
      return;
    }
  }
  const int64_t n = exact_ ? kRowsMax : rows;  // of library operators
  at::Tensor x = at::embedding(model_.embed(), rows_.ids.slice(0, 0, n));
  Layers(rows_, rows, x, n);
  if (head) Head(x);
}

// Rows behind the chunk's own are whole products of padding, whose results nobody reads.
at::Tensor GpuExecutor::ChunkBody(const Rows& rows, int64_t count) {
  const int64_t n = exact_ ? (count + kProductRows - 1) / kProductRows * kProductRows : count;
  at::Tensor x = at::embedding(model_.embed(), rows.ids.slice(0, 0, n));
  Layers(rows, count, x, exact_ ? kProductRows : n);
  return x;
}

void GpuExecutor::Head(const at::Tensor& x) {
  const at::Tensor logits = logits_.slice(0, 0, x.size(0));
  const at::Tensor normed = at::rms_norm(x, {model_.config().hidden_size}, model_.norm(), model_.config().rms_eps);
  logits.copy_(at::linear(normed, model_.head()));
  device_->Likeliest(logits, best_.slice(0, 0, x.size(0)));
}

void GpuExecutor::CountCost(const PassInput& input, const Group& group, bool head) {
  uint16_t set = 0;
  std::set<int32_t> ids;
  for (int64_t t = group.first; t < group.first + group.count; ++t) {
    set = static_cast<uint16_t>(set | 1U << input.experts[static_cast<size_t>(t)]);
    ids.insert(input.tokens.ids[static_cast<size_t>(t)]);
  }
  const int64_t ffn = FfnBytes(set), embed = static_cast<int64_t>(model_.embed().nbytes()) / shape_.vocab;
  cost_.ffn_bytes += ffn;
  cost_.weight_bytes += ffn + model_.LayerBytes() + static_cast<int64_t>(ids.size()) * embed;
  if (head) cost_.weight_bytes += model_.HeadBytes();
}

}  // namespace outrider::serve_gpu
