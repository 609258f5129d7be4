// Our kernels, and one CUDA graph per kind of pass: the copy of what the host staged, then every operator.
#include "serve_gpu/device.h"

#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/chunk_attention.h"
#include "kernels/cuda/decode_step.h"
#include "kernels/cuda/likeliest.h"
#include "kernels/cuda/paged_attention.h"
#include "kernels/cuda/residual.h"
#include "kernels/cuda/tied_ffn.h"

namespace outrider::serve_gpu {
namespace {

namespace cuda = kernels::cuda;
static_assert(kTileRows == cuda::kAttentionTileRows && kTileNumbers == 4);

// Host memory that the device copies from and to by itself.
class PinnedBytes {
 public:
  explicit PinnedBytes(size_t bytes) { C10_CUDA_CHECK(cudaHostAlloc(&memory_, bytes, cudaHostAllocDefault)); }
  ~PinnedBytes() { (void)cudaFreeHost(memory_); }
  PinnedBytes(const PinnedBytes&) = delete;
  PinnedBytes& operator=(const PinnedBytes&) = delete;
  void* get() const { return memory_; }

 private:
  void* memory_ = nullptr;
};

cuda::Layer LayerOf(const GpuModel& model, const GpuLayer& layer) {
  cuda::Layer out;
  out.records = layer.records.const_data_ptr();
  out.signatures = static_cast<const uint16_t*>(layer.signatures.const_data_ptr());
  out.lists = layer.lists.const_data_ptr<int32_t>();
  out.list_at = layer.list_at.const_data_ptr<int32_t>();
  out.active_max = static_cast<int>(layer.active_max);
  out.channels = static_cast<int>(layer.records.size(0));
  out.width = static_cast<int>(layer.records.size(2));
  out.experts = static_cast<int>(std::max<int64_t>(model.experts(), 1));
  return out;
}

cuda::StepModel StepModelOf(const GpuModel& model) {
  const spec::Config& config = model.config();
  const auto pointer = [](const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
  cuda::StepModel out;
  for (const GpuLayer& layer : model.layers()) {
    const auto window = static_cast<int>(config.windows[out.layers.size()]);
    out.layers.push_back({pointer(layer.attn_norm), pointer(layer.qkv), pointer(layer.qkv_bias), pointer(layer.o),
                          pointer(layer.o_bias), pointer(layer.ffn_norm), LayerOf(model, layer), window});
  }
  out.embed = pointer(model.embed());
  out.norm = pointer(model.norm());
  out.head = pointer(model.head());
  out.width = static_cast<int>(config.hidden_size);
  out.vocab = static_cast<int>(config.vocab);
  out.heads = static_cast<int>(config.heads);
  out.kv_heads = static_cast<int>(config.kv_heads);
  out.head_dim = static_cast<int>(config.head_dim);
  out.eps = static_cast<float>(config.rms_eps);
  return out;
}

class CudaDevice final : public Device {
 public:
  CudaDevice(const GpuModel& model, const Staged& staged)
      : model_(model),
        staged_(staged),
        step_model_(StepModelOf(model)),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, model.device().index())),
        pool_(at::cuda::graph_pool_handle()),
        host_rows_(staged.rows.nbytes()),
        host_chunk_(staged.chunk.nbytes()),
        host_fetched_(static_cast<size_t>(kRowsMax * model.config().vocab) * sizeof(float)) {
    const c10::cuda::CUDAStreamGuard on_stream(stream_);
    const auto options = staged.rows.options();
    int64_t bytes = 0, prefill_bytes = 0;
    for (const GpuLayer& layer : model.layers()) {
      const cuda::Layer one = LayerOf(model, layer);
      bytes = std::max(bytes, cuda::DecodeBytes(one));
      prefill_bytes = std::max(prefill_bytes, cuda::PrefillBytes(one, static_cast<int>(kChunkMax)));
    }
    ffn_scratch_ = at::empty({bytes}, options.dtype(at::kByte));
    prefill_scratch_ = at::empty({prefill_bytes}, options.dtype(at::kByte));
    order_ = at::empty({kChunkMax}, options);
    order_at_ = at::empty({cuda::kExpertsMax + 1}, options);
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, model.device().index()));
    MakeStepBuffers();
    C10_CUDA_CHECK(cudaDeviceSynchronize());  // weights and buffers were made on other streams
  }

  void Attend(const Rows& rows, const AttendCall& call) override {
    if (rows.chunk()) return AttendChunk(rows, call);
    const auto to = CallOf<cuda::PagedAttention>(rows, call);
    C10_CUDA_CHECK(cuda::StoreTurned(to, stream_.stream()));
    C10_CUDA_CHECK(cuda::Attend(to, stream_.stream()));
  }

  void Ffn(const Rows& rows, const GpuLayer& layer, int64_t count, const at::Tensor& x, const at::Tensor& y) override {
    if (rows.chunk()) {
      C10_CUDA_CHECK(cuda::Prefill(LayerOf(model_, layer), Order(), x.const_data_ptr(), y.mutable_data_ptr(),
                                   static_cast<int>(count), prefill_scratch_.mutable_data_ptr(), multiprocessors_,
                                   stream_.stream()));
      return;
    }
    C10_CUDA_CHECK(cuda::Decode(LayerOf(model_, layer), rows.experts.const_data_ptr<uint8_t>(), x.const_data_ptr(),
                                y.mutable_data_ptr(), static_cast<int>(count), ffn_scratch_.mutable_data_ptr(),
                                multiprocessors_, stream_.stream()));
  }

  bool Decode(const Rows& rows, const DecodePass& pass) override {
    std::vector<void*> keys, values;
    for (const at::Tensor& cache : pass.keys) keys.push_back(cache.mutable_data_ptr());
    for (const at::Tensor& cache : pass.values) values.push_back(cache.mutable_data_ptr());
    cuda::Step step;
    step.ids = rows.ids.const_data_ptr<int32_t>();
    step.positions = rows.positions.const_data_ptr<int32_t>();
    step.experts = rows.experts.const_data_ptr<uint8_t>();
    step.pages = rows.pages.const_data_ptr<int32_t>();
    step.cos = pass.cos.const_data_ptr<float>();
    step.sin = pass.sin.const_data_ptr<float>();
    step.keys = keys.data();
    step.values = values.data();
    if (pass.head) step.logits = pass.logits.mutable_data_ptr<float>();
    step.tokens = static_cast<int>(pass.count);
    step.table = static_cast<int>(rows.pages.size(1));
    step.multiprocessors = multiprocessors_;
    C10_CUDA_CHECK(cuda::RunStep(step_model_, step_, step, stream_.stream()));
    return true;
  }

  void Likeliest(const at::Tensor& logits, const at::Tensor& best) override {
    C10_CUDA_CHECK(cuda::FindLikeliest(logits.const_data_ptr<float>(), static_cast<int>(logits.size(0)),
                                       static_cast<int>(logits.size(1)), best.mutable_data_ptr<int64_t>(),
                                       stream_.stream()));
  }

  void Run(int kind, const std::function<void()>& body) override {
    const c10::cuda::CUDAStreamGuard on_stream(stream_);
    const auto found = graphs_.find(kind);
    if (found != graphs_.end()) return found->second.replay();
    Upload(staged_.rows, host_rows_);
    body();  // libraries prepare themselves, which no capture may contain
    C10_CUDA_CHECK(cudaStreamSynchronize(stream_.stream()));
    at::cuda::CUDAGraph& graph = graphs_[kind];
    graph.capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
    Upload(staged_.rows, host_rows_);
    body();
    graph.capture_end();
  }

  void RunChunk(const Rows& rows, int64_t count, const std::function<void()>& body) override {
    const c10::cuda::CUDAStreamGuard on_stream(stream_);
    Upload(staged_.chunk, host_chunk_);
    const auto experts = static_cast<int>(std::max<int64_t>(model_.experts(), 1));
    C10_CUDA_CHECK(cuda::MakePlan(rows.experts.const_data_ptr<uint8_t>(), static_cast<int>(count), experts, Order(),
                                  stream_.stream()));
    body();
  }

  void RunBehind(const std::function<void()>& body) override {
    const c10::cuda::CUDAStreamGuard on_stream(stream_);
    body();
  }

  const void* Fetch(const at::Tensor& from, int64_t first, int64_t count) override {
    const auto row = static_cast<size_t>(from.nbytes()) / static_cast<size_t>(from.size(0));
    if (count > 0)
      C10_CUDA_CHECK(cudaMemcpyAsync(
          host_fetched_.get(), static_cast<const uint8_t*>(from.const_data_ptr()) + row * static_cast<size_t>(first),
          row * static_cast<size_t>(count), cudaMemcpyDeviceToHost, stream_.stream()));
    C10_CUDA_CHECK(cudaStreamSynchronize(stream_.stream()));
    ++waits_;
    return host_fetched_.get();
  }

  int32_t* staging() override { return static_cast<int32_t*>(host_rows_.get()); }
  int32_t* chunk_staging() override { return static_cast<int32_t*>(host_chunk_.get()); }
  int64_t waits() const override { return waits_; }

 private:
  // What both kinds of attention are told.
  template <class Call>
  Call CallOf(const Rows& rows, const AttendCall& call) const {
    const spec::Config& config = model_.config();
    Call to;
    to.qkv = call.qkv.mutable_data_ptr();
    to.cos = call.cos.const_data_ptr<float>();
    to.sin = call.sin.const_data_ptr<float>();
    to.positions = rows.positions.const_data_ptr<int32_t>();
    to.pages = rows.pages.const_data_ptr<int32_t>();
    to.keys = call.keys.mutable_data_ptr();
    to.values = call.values.mutable_data_ptr();
    to.out = call.out.mutable_data_ptr();
    to.rows = static_cast<int>(call.rows);
    to.table = static_cast<int>(rows.pages.size(1));
    to.heads = static_cast<int>(config.heads);
    to.kv_heads = static_cast<int>(config.kv_heads);
    to.head_dim = static_cast<int>(config.head_dim);
    to.window = static_cast<int>(call.window);
    to.scale = 1 / std::sqrt(static_cast<float>(config.head_dim));
    return to;
  }

  void AttendChunk(const Rows& rows, const AttendCall& call) {
    auto to = CallOf<cuda::ChunkAttention>(rows, call);
    to.texts = rows.texts.const_data_ptr<int32_t>();
    to.tiles = rows.tiles.const_data_ptr<int32_t>();
    to.tile_count = static_cast<int>(rows.tiles_used);
    C10_CUDA_CHECK(cuda::AttendChunk(to, stream_.stream()));
  }

  // Memory for Decode, whose FFN shares ffn_scratch_.
  void MakeStepBuffers() {
    const cuda::StepModel& m = step_model_;
    const auto take = [&](int64_t bytes) {
      step_memory_.push_back(at::empty({bytes}, staged_.rows.options().dtype(at::kByte)));
      return step_memory_.back().mutable_data_ptr();
    };
    step_.x = take(kRowsMax * m.width * 2);
    step_.weighted = take(kRowsMax * m.width * 2);
    step_.squares = static_cast<float*>(take(kRowsMax * cuda::kSquaresMax * 4));
    step_.qkv = take(kRowsMax * (m.heads + 2 * m.kv_heads) * m.head_dim * 2);
    step_.mixed = take(kRowsMax * m.heads * m.head_dim * 2);
    step_.scratch = ffn_scratch_.mutable_data_ptr();
    for (const cuda::StepLayer& layer : m.layers)
      step_.live_stride = std::max(step_.live_stride, cuda::LiveBytes(layer.ffn.channels));
    step_.live = static_cast<uint8_t*>(take(step_.live_stride * static_cast<int64_t>(m.layers.size())));
    const std::vector<cuda::LiveJob> jobs = cuda::JobsOf(m, step_);
    const size_t size = jobs.size() * sizeof(cuda::LiveJob);
    void* to = take(static_cast<int64_t>(size));
    C10_CUDA_CHECK(cudaMemcpy(to, jobs.data(), size, cudaMemcpyHostToDevice));
    step_.jobs = static_cast<const cuda::LiveJob*>(to);
  }

  void Upload(const at::Tensor& to, const PinnedBytes& from) {
    C10_CUDA_CHECK(
        cudaMemcpyAsync(to.mutable_data_ptr(), from.get(), to.nbytes(), cudaMemcpyHostToDevice, stream_.stream()));
  }
  cuda::Plan Order() const { return {order_.mutable_data_ptr<int32_t>(), order_at_.mutable_data_ptr<int32_t>()}; }

  const GpuModel model_;  // shares its tensors
  Staged staged_;
  at::Tensor ffn_scratch_, prefill_scratch_, order_, order_at_;
  const cuda::StepModel step_model_;
  cuda::StepBuffers step_;
  std::vector<at::Tensor> step_memory_;
  c10::cuda::CUDAStream stream_;
  c10::MempoolId_t pool_;
  PinnedBytes host_rows_, host_chunk_, host_fetched_;
  std::map<int, at::cuda::CUDAGraph> graphs_;
  int multiprocessors_ = 0;
  int64_t waits_ = 0;
};

}  // namespace

base::Result<void> CheckCuda() {
  if (c10::cuda::device_count() == 0)
    return base::Fail("E_CUDA", "device cuda: found no CUDA device, expected one; serve with the device cpu");
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  if (major != 9 || minor != 0)
    return base::Fail("E_CUDA", "device cuda: found compute capability " + std::to_string(major) + "." +
                                    std::to_string(minor) + ", expected 9.0 (Hopper); serve with the device cpu");
  return {};
}

base::Result<void> CheckCudaShape(const spec::Config& config) {
  const auto bad = [](const char* field, int64_t found, const std::string& expected) {
    return base::Fail("E_CUDA", std::string("device cuda: ") + field + ": found " + std::to_string(found) +
                                    ", expected " + expected + "; serve this model with the device cpu");
  };
  if (config.hidden_size % cuda::kWidthMultiple != 0)
    return bad("hidden_size", config.hidden_size, "a multiple of " + std::to_string(cuda::kWidthMultiple));
  if (constexpr int64_t most = int64_t{cuda::kSquaresMax} * 16; config.hidden_size > most)
    return bad("hidden_size", config.hidden_size, "at most " + std::to_string(most));
  if (config.head_dim != 32 && config.head_dim != 64 && config.head_dim != 128)
    return bad("head_dim", config.head_dim, "32, 64 or 128");
  return {};
}

CudaFacts CudaFactsNow() {
  size_t free = 0, total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  cudaDeviceProp properties{};
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  return {properties.name, static_cast<int64_t>(free)};
}

base::Result<std::unique_ptr<Device>> MakeCuda(const GpuModel& model, const Staged& staged) {
  if (auto ok = CheckCuda(); !ok) return tl::unexpected(ok.error());
  if (auto ok = CheckCudaShape(model.config()); !ok) return tl::unexpected(ok.error());
  if (model.dtype() != at::kBFloat16)
    return base::Fail(
        "E_CUDA", std::string("device cuda: weights: found ") + c10::toString(model.dtype()) + ", expected BFloat16");
  return std::make_unique<CudaDevice>(model, staged);
}

}  // namespace outrider::serve_gpu
