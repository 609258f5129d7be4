// Our kernels, and one CUDA graph per kind of pass: the copy of what the host staged, then every operator.
#include "serve_gpu/device.h"

#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "kernels/cuda/paged_attention.h"
#include "kernels/cuda/tied_ffn.h"

namespace outrider::serve_gpu {
namespace {

namespace cuda = kernels::cuda;

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
  out.channels = static_cast<int>(layer.records.size(0));
  out.width = static_cast<int>(layer.records.size(2));
  out.experts = static_cast<int>(std::max<int64_t>(model.experts(), 1));
  return out;
}

class CudaDevice final : public Device {
 public:
  CudaDevice(const GpuModel& model, const at::Tensor& staged)
      : model_(model),
        staged_(staged),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, model.device().index())),
        pool_(at::cuda::graph_pool_handle()),
        host_staged_(staged.nbytes()),
        host_fetched_(static_cast<size_t>(kRowsMax * model.config().vocab) * sizeof(float)) {
    const spec::Config& config = model.config();
    const c10::cuda::CUDAStreamGuard on_stream(stream_);
    int64_t bytes = 0;
    for (const GpuLayer& layer : model.layers())
      bytes = std::max(bytes, cuda::DecodeBytes(LayerOf(model, layer), static_cast<int>(kRowsMax)));
    ffn_scratch_ = at::empty({bytes}, staged.options().dtype(at::kByte));
    attention_scratch_ = at::empty({cuda::AttentionFloats(static_cast<int>(kRowsMax), static_cast<int>(config.heads),
                                                          static_cast<int>(config.head_dim))},
                                   staged.options().dtype(at::kFloat));
    C10_CUDA_CHECK(cudaDeviceSynchronize());  // weights and buffers were made on other streams
  }

  void Attend(const Rows& rows, const AttendCall& call) override {
    const spec::Config& config = model_.config();
    cuda::PagedAttention to;
    to.qkv = call.qkv.mutable_data_ptr();
    to.cos = call.cos.const_data_ptr<float>();
    to.sin = call.sin.const_data_ptr<float>();
    to.positions = rows.positions.const_data_ptr<int32_t>();
    to.pages = rows.pages.const_data_ptr<int32_t>();
    to.keys = call.keys.mutable_data_ptr();
    to.values = call.values.mutable_data_ptr();
    to.out = call.out.mutable_data_ptr();
    to.scratch = attention_scratch_.mutable_data_ptr<float>();
    to.rows = static_cast<int>(call.rows);
    to.table = static_cast<int>(rows.pages.size(1));
    to.heads = static_cast<int>(config.heads);
    to.kv_heads = static_cast<int>(config.kv_heads);
    to.head_dim = static_cast<int>(config.head_dim);
    to.window = static_cast<int>(call.window);
    to.scale = 1 / std::sqrt(static_cast<float>(config.head_dim));
    C10_CUDA_CHECK(cuda::Attend(to, stream_.stream()));
  }

  void Ffn(const Rows& rows, const GpuLayer& layer, int64_t count, const at::Tensor& x, const at::Tensor& y) override {
    C10_CUDA_CHECK(cuda::Decode(LayerOf(model_, layer), rows.experts.const_data_ptr<uint8_t>(), x.const_data_ptr(),
                                y.mutable_data_ptr(), static_cast<int>(count), ffn_scratch_.mutable_data_ptr(),
                                stream_.stream()));
  }

  void Run(int kind, const std::function<void()>& body) override {
    const c10::cuda::CUDAStreamGuard on_stream(stream_);
    const auto found = graphs_.find(kind);
    if (found != graphs_.end()) return found->second.replay();
    Upload();
    body();  // libraries prepare themselves, which no capture may contain
    C10_CUDA_CHECK(cudaStreamSynchronize(stream_.stream()));
    at::cuda::CUDAGraph& graph = graphs_[kind];
    graph.capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
    Upload();
    body();
    graph.capture_end();
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

  int32_t* staging() override { return static_cast<int32_t*>(host_staged_.get()); }
  int64_t waits() const override { return waits_; }

 private:
  void Upload() {
    C10_CUDA_CHECK(cudaMemcpyAsync(staged_.mutable_data_ptr(), host_staged_.get(), staged_.nbytes(),
                                   cudaMemcpyHostToDevice, stream_.stream()));
  }

  const GpuModel model_;  // shares its tensors
  at::Tensor staged_, ffn_scratch_, attention_scratch_;
  c10::cuda::CUDAStream stream_;
  c10::MempoolId_t pool_;
  PinnedBytes host_staged_, host_fetched_;
  std::map<int, at::cuda::CUDAGraph> graphs_;
  int64_t waits_ = 0;
};

}  // namespace

base::Result<void> CheckCuda() {
  if (c10::cuda::device_count() == 0) return base::Fail("E_CUDA", "device cuda: found no CUDA device, expected one");
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  if (major != 9 || minor != 0)
    return base::Fail("E_CUDA", "device cuda: found compute capability " + std::to_string(major) + "." +
                                    std::to_string(minor) + ", expected 9.0");
  return {};
}

base::Result<std::unique_ptr<Device>> MakeCuda(const GpuModel& model, const at::Tensor& staged) {
  if (auto ok = CheckCuda(); !ok) return tl::unexpected(ok.error());
  const spec::Config& config = model.config();
  const bool heads = config.head_dim == 32 || config.head_dim == 64 || config.head_dim == 128;
  if (!heads || config.hidden_size % cuda::kWidthMultiple != 0 || model.dtype() != at::kBFloat16)
    return base::Fail("E_CUDA", "found width " + std::to_string(config.hidden_size) + ", heads of " +
                                    std::to_string(config.head_dim) + ", expected a multiple of " +
                                    std::to_string(cuda::kWidthMultiple) + ", 32, 64 or 128, and bf16");
  return std::make_unique<CudaDevice>(model, staged);
}

}  // namespace outrider::serve_gpu
