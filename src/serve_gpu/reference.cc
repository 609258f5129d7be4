// Attention and FFN in public operators: for the CPU, and to check the kernels against.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/engine.h"
#include "serve_gpu/device.h"

namespace outrider::serve_gpu {
namespace {

// x [rows, heads, head_dim]; the halves of a head are the coordinates of its planes.
at::Tensor Turn(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor a = x.slice(-1, 0, half).to(at::kFloat), b = x.slice(-1, half).to(at::kFloat);
  const at::Tensor c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  return at::cat({a * c - b * s, b * c + a * s}, -1).to(x.scalar_type());
}

class Reference final : public Device {
 public:
  Reference(const GpuModel& model, const Staged& staged)
      : config_(model.config()),
        staged_(staged),
        host_{at::empty(staged.rows.sizes(), at::kInt), at::empty(staged.chunk.sizes(), at::kInt)} {}

  void Attend(const Rows& rows, const AttendCall& call) override {
    const int64_t n = call.rows, dim = config_.head_dim, heads = config_.heads, kv = config_.kv_heads;
    const at::Tensor all = call.qkv.slice(0, 0, n).view({n, heads + 2 * kv, dim});
    const at::Tensor cos = call.cos.slice(0, 0, n), sin = call.sin.slice(0, 0, n);
    const at::Tensor q = Turn(all.slice(1, 0, heads), cos, sin);
    const at::Tensor k = Turn(all.slice(1, heads, heads + kv), cos, sin), v = all.slice(1, heads + kv);
    const at::Tensor positions = rows.positions.slice(0, 0, n).to(at::kLong);
    const at::Tensor pages =
        (rows.chunk() ? rows.pages.index_select(0, rows.texts.slice(0, 0, n)) : rows.pages.slice(0, 0, n))
            .to(at::kLong);
    const at::Tensor page = pages.gather(1, positions.div(kernels::kPageTokens, "floor").unsqueeze(1)).squeeze(1);
    const at::Tensor slot = positions.remainder(kernels::kPageTokens);
    call.keys.transpose(1, 2).index_put_({page, slot}, k);
    call.values.transpose(1, 2).index_put_({page, slot}, v);
    const auto gathered = [&](const at::Tensor& cache) {  // [n, kv, table * page tokens, dim]
      return cache.index_select(0, pages.reshape({-1}))
          .view({n, -1, kv, kernels::kPageTokens, dim})
          .transpose(1, 2)
          .reshape({n, kv, -1, dim})
          .to(at::kFloat);
    };
    const at::Tensor queries = q.to(at::kFloat).view({n, kv, heads / kv, dim});
    at::Tensor scores = at::matmul(queries, gathered(call.keys).transpose(2, 3)) / std::sqrt(static_cast<double>(dim));
    const at::Tensor places = at::arange(scores.size(-1), positions.options()), last = positions.view({n, 1, 1, 1});
    at::Tensor hidden = places > last;
    if (call.window > 0) hidden = hidden.logical_or(places <= last - call.window);
    scores = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity());
    const at::Tensor mixed = at::matmul(at::softmax(scores, -1), gathered(call.values));
    call.out.slice(0, 0, n).copy_(mixed.reshape({n, heads * dim}));
  }

  void Ffn(const Rows& rows, const GpuLayer& layer, int64_t count, const at::Tensor& x, const at::Tensor& y) override {
    const at::Tensor some = x.slice(0, 0, count);
    const at::Tensor h =
        at::silu(at::linear(some, layer.records.select(1, 0))) * at::linear(some, layer.records.select(1, 1));
    const at::Tensor shift = rows.experts.slice(0, 0, count).to(at::kInt).unsqueeze(1);
    const at::Tensor wanted =
        layer.signatures.to(at::kInt).unsqueeze(0).__rshift__(shift).bitwise_and(1).to(x.scalar_type());
    y.slice(0, 0, count).copy_(at::matmul(h * wanted, layer.records.select(1, 2)));
  }

  void Likeliest(const at::Tensor& logits, const at::Tensor& best) override {
    const at::Tensor finite = logits.isfinite().all(-1);
    best.copy_(at::where(finite, logits.argmax(-1), at::full({}, serve::kNoId, best.options())));
  }

  void Run(int kind, const std::function<void()>& body) override {
    (void)kind;
    staged_.rows.copy_(host_.rows);
    body();
  }
  void RunChunk(const Rows& rows, int64_t count, const std::function<void()>& body) override {
    (void)rows, (void)count;
    staged_.chunk.copy_(host_.chunk);
    body();
  }
  void RunBehind(const std::function<void()>& body) override { body(); }

  const void* Fetch(const at::Tensor& from, int64_t first, int64_t count) override {
    ++waits_;
    fetched_ = from.slice(0, first, first + count).to(at::kCPU);
    return fetched_.const_data_ptr();
  }
  int32_t* staging() override { return host_.rows.mutable_data_ptr<int32_t>(); }
  int32_t* chunk_staging() override { return host_.chunk.mutable_data_ptr<int32_t>(); }
  int64_t waits() const override { return waits_; }

 private:
  const spec::Config config_;
  Staged staged_, host_;
  at::Tensor fetched_;
  int64_t waits_ = 0;
};

}  // namespace

std::unique_ptr<Device> MakeReference(const GpuModel& model, const Staged& staged) {
  return std::make_unique<Reference>(model, staged);
}

}  // namespace outrider::serve_gpu
