#include "kernels/cuda/decode_step.h"

#include <cmath>

#include "kernels/cuda/paged_attention.h"
#include "kernels/cuda/projections.h"
#include "kernels/cuda/residual.h"

namespace outrider::kernels::cuda {
namespace {

constexpr int kFollowingTokens = 17;  // with fewer, kernels have room for each other

const uint8_t* LiveOf(const StepBuffers& buffers, size_t layer) {
  return buffers.live + buffers.live_stride * static_cast<int64_t>(layer);
}

Residual ResidualOf(const StepModel& model, const StepBuffers& buffers, const void* next_norm) {
  return {buffers.x, buffers.weighted, buffers.squares, next_norm, model.eps, model.width};
}

PagedAttention AttentionOf(const StepModel& model, const StepBuffers& buffers, const Step& step, size_t layer) {
  PagedAttention to;
  to.qkv = buffers.qkv;
  to.cos = step.cos;
  to.sin = step.sin;
  to.positions = step.positions;
  to.pages = step.pages;
  to.keys = step.keys[layer];
  to.values = step.values[layer];
  to.out = buffers.mixed;
  to.rows = step.tokens;
  to.table = step.table;
  to.heads = model.heads;
  to.kv_heads = model.kv_heads;
  to.head_dim = model.head_dim;
  to.window = model.layers[layer].window;
  to.scale = 1 / std::sqrt(static_cast<float>(model.head_dim));
  if (step.tokens >= kFollowingTokens)
    to.following =
        FollowingRows(model.layers[layer].o, model.width, model.heads * model.head_dim, step.multiprocessors);
  return to;
}

// A product with the normalized residual.
Projection ProjectionOf(const StepModel& model, const StepBuffers& buffers, const Step& step, int squares) {
  Projection call;
  call.x = buffers.weighted;
  call.squares = squares;
  call.residual = ResidualOf(model, buffers, nullptr);
  call.depth = model.width;
  call.tokens = step.tokens;
  call.multiprocessors = step.multiprocessors;
  return call;
}

cudaError_t RunAttention(const StepModel& model, const StepBuffers& buffers, const Step& step, size_t l, int squares,
                         cudaStream_t stream) {
  const StepLayer& layer = model.layers[l];
  const PagedAttention attention = AttentionOf(model, buffers, step, l);
  Projection qkv = ProjectionOf(model, buffers, step, squares);
  qkv.weight = layer.qkv;
  qkv.bias = layer.qkv_bias;
  qkv.rows = (model.heads + 2 * model.kv_heads) * model.head_dim;
  if (const cudaError_t status = ProjectQkv(qkv, attention, stream); status != cudaSuccess) return status;
  if (const cudaError_t status = Attend(attention, stream); status != cudaSuccess) return status;
  Projection o = ProjectionOf(model, buffers, step, 0);
  o.weight = layer.o;
  o.bias = layer.o_bias;
  o.x = buffers.mixed;
  o.residual.next_norm = layer.ffn_norm;
  o.rows = model.width;
  o.depth = model.heads * model.head_dim;
  if (step.tokens >= kFollowingTokens) o.following = FollowingFfn(layer.ffn, LiveOf(buffers, l), step.multiprocessors);
  return ProjectAndAdd(o, stream);
}

// What is behind layer l - 1.
Following FollowingLayer(const StepModel& model, const StepBuffers& buffers, const Step& step, size_t l) {
  if (l == model.layers.size())
    return step.logits == nullptr ? Following{}
                                  : FollowingRows(model.head, model.vocab, model.width, step.multiprocessors);
  const PagedAttention attention = AttentionOf(model, buffers, step, l);
  return FollowingQkv(model.layers[l].qkv, model.width, attention, step.multiprocessors);
}

cudaError_t RunFfn(const StepModel& model, const StepBuffers& buffers, const Step& step, size_t l,
                   cudaStream_t stream) {
  const bool last = l + 1 == model.layers.size();
  DecodeCall call;
  call.ids = step.experts;
  call.live = LiveOf(buffers, l);
  call.x = buffers.weighted;
  call.squares = ProjectSquares(model.width);
  call.residual = ResidualOf(model, buffers, last ? model.norm : model.layers[l + 1].attn_norm);
  call.tokens = step.tokens;
  call.scratch = buffers.scratch;
  call.multiprocessors = step.multiprocessors;
  if (step.tokens >= kFollowingTokens) call.following = FollowingLayer(model, buffers, step, l + 1);
  return Decode(model.layers[l].ffn, call, stream);
}

}  // namespace

std::vector<LiveJob> JobsOf(const StepModel& model, const StepBuffers& buffers) {
  std::vector<LiveJob> jobs;
  for (const StepLayer& layer : model.layers) {
    uint8_t* live = buffers.live + buffers.live_stride * static_cast<int64_t>(jobs.size());
    jobs.push_back({layer.ffn.signatures, layer.ffn.channels, live});
  }
  return jobs;
}

// What FindLive leaves is read by kernels before they wait. None of these starts before the first attention has waited
// for the kernel in front of it, and so for FindLive.
cudaError_t RunStep(const StepModel& model, const StepBuffers& buffers, const Step& step, cudaStream_t stream) {
  const auto layers = static_cast<int>(model.layers.size());
  if (layers < 1) return cudaErrorInvalidValue;
  cudaError_t status = FindLive(buffers.jobs, layers, step.experts, step.tokens, stream);
  if (status != cudaSuccess) return status;
  const Residual first = ResidualOf(model, buffers, model.layers[0].attn_norm);
  if (status = Embed(model.embed, step.ids, step.tokens, first, stream); status != cudaSuccess) return status;
  int squares = 1;
  for (size_t l = 0; l < model.layers.size(); ++l) {
    if (status = RunAttention(model, buffers, step, l, squares, stream); status != cudaSuccess) return status;
    if (status = RunFfn(model, buffers, step, l, stream); status != cudaSuccess) return status;
    squares = DecodeSquares(model.width);
  }
  if (step.logits == nullptr) return cudaSuccess;
  Projection head = ProjectionOf(model, buffers, step, squares);
  head.weight = model.head;
  head.rows = model.vocab;
  return ProjectLogits(head, step.logits, stream);
}

}  // namespace outrider::kernels::cuda
