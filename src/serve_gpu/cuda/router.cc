// The router's kernels, launched one behind the other: eight of them, and one wait.
#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/router.h"
#include "kernels/engine.h"
#include "serve_gpu/router_device.h"

namespace outrider::serve_gpu {
namespace {

namespace cuda = kernels::cuda;
using serve::RouterContext;
using serve::RouterMatrix;
using serve::RouterSpec;
using serve::RouterWeights;
using serve::RouteStage;
static_assert(cuda::kRouterPage == kernels::kPageTokens);

struct FreeOnDevice {
  void operator()(void* memory) const { (void)cudaFree(memory); }
};
struct FreePinned {
  void operator()(void* memory) const { (void)cudaFreeHost(memory); }
};
struct EndStream {
  void operator()(cudaStream_t stream) const { (void)cudaStreamDestroy(stream); }
};

class CudaRouter final : public serve::RouterDevice {
 public:
  // status() says what went wrong, if anything.
  CudaRouter(const RouterSpec& spec, const RouterWeights& weights, const serve::ModelShape& shape, int device)
      : device_(device) {
    Do([&] { return cudaSetDevice(device); });
    Do([&] {
      int least = 0, greatest = 0;
      cudaStream_t stream = nullptr;
      auto status = cudaDeviceGetStreamPriorityRange(&least, &greatest);
      if (status == cudaSuccess) status = cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest);
      stream_.reset(stream);
      return status;
    });
    TakeWeights(spec, weights);
    const int64_t tokens = RouteStage::kTokensMax, width = spec.width, numbers = RouteStage::SizeMax(shape.context);
    const bool attends = spec.context == RouterContext::kCausal;
    const int64_t cached = attends ? shape.route_pages * cuda::kRouterPage * width : 0;
    call_.keys = Floats(cached);
    call_.values = Floats(cached);
    call_.x = Floats(tokens * width);
    call_.inner = Floats(tokens * width);
    call_.qkv = Floats(attends ? tokens * 3 * width : 0);
    call_.logits = Floats(tokens * spec.experts);
    stage_ = static_cast<int32_t*>(Bytes(numbers * 4));
    call_.ids = stage_ + RouteStage::kIds;
    call_.positions = stage_ + RouteStage::kPositions;
    call_.texts = stage_ + RouteStage::kTexts;
    call_.pages = stage_ + RouteStage::kPages;
    host_stage_ = Pinned(numbers * 4);
    host_logits_ = Pinned(tokens * spec.experts * 4);
    Do([] { return cudaDeviceSynchronize(); });  // weights were copied on another stream
  }

  cudaError_t status() const { return status_; }
  int32_t* staging() override { return static_cast<int32_t*>(host_stage_.get()); }

  base::Result<const float*> Run(const RouteStage& stage) override {
    call_.tokens = static_cast<int>(stage.tokens);
    call_.table = static_cast<int>(stage.table);
    const cudaStream_t stream = stream_.get();
    const auto bytes = [](int64_t numbers) { return static_cast<size_t>(numbers) * 4; };
    Do([&] { return cudaSetDevice(device_); });
    Do([&] { return cudaMemcpyAsync(stage_, staging(), bytes(stage.size()), cudaMemcpyHostToDevice, stream); });
    Do([&] { return cuda::RunRouter(model_, call_, stream); });
    Do([&] {
      return cudaMemcpyAsync(host_logits_.get(), call_.logits, bytes(stage.tokens * model_.experts),
                             cudaMemcpyDeviceToHost, stream);
    });
    Do([&] { return cudaStreamSynchronize(stream); });
    if (status_ != cudaSuccess)
      return base::Fail("E_DEVICE", std::string("the router failed: ") + cudaGetErrorString(status_));
    return static_cast<const float*>(host_logits_.get());
  }

 private:
  // Nothing is done behind a failure.
  template <class Call>
  void Do(const Call& call) {
    if (status_ == cudaSuccess) status_ = call();
  }

  void* Bytes(int64_t count) {
    void* memory = nullptr;
    if (count > 0) Do([&] { return cudaMalloc(&memory, static_cast<size_t>(count)); });
    kept_.emplace_back(memory);
    return memory;
  }
  float* Floats(int64_t count) { return static_cast<float*>(Bytes(count * 4)); }

  std::unique_ptr<void, FreePinned> Pinned(int64_t bytes) {
    void* memory = nullptr;
    Do([&] { return cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault); });
    return std::unique_ptr<void, FreePinned>(memory);
  }

  const float* Copy(const std::vector<float>& from) {
    float* to = Floats(std::ssize(from));
    Do([&] { return cudaMemcpy(to, from.data(), from.size() * sizeof(float), cudaMemcpyHostToDevice); });
    return to;
  }

  void Copy(const RouterMatrix& from, const float*& weight, const float*& bias) {
    weight = Copy(from.weight);
    bias = Copy(from.bias);
  }

  void TakeWeights(const RouterSpec& spec, const RouterWeights& from) {
    model_.width = static_cast<int>(spec.width);
    model_.heads = static_cast<int>(spec.heads);
    model_.experts = static_cast<int>(spec.experts);
    model_.scale = spec.score_scale();
    model_.eps = serve::kRouterNormEps;
    if (spec.context == RouterContext::kCausal) {
      model_.attn_norm = Copy(from.attn_norm);
      Copy(from.qkv, model_.qkv, model_.qkv_bias);
      Copy(from.o, model_.o, model_.o_bias);
    }
    model_.mlp_norm = Copy(from.mlp_norm);
    Copy(from.w1, model_.w1, model_.w1_bias);
    Copy(from.w2, model_.w2, model_.w2_bias);
    model_.norm = Copy(from.norm);
    Copy(from.head, model_.head, model_.head_bias);
    model_.frequencies = Copy(from.frequencies);
    TakeTable(spec, from.table);
  }

  // bf16 where it is stored so, which is exact, else fp32; the columns of the router alone.
  void TakeTable(const RouterSpec& spec, const serve::WeightRows& from) {
    model_.table_bf16 = from.dtype == files::Dtype::kBF16;
    if (!model_.table_bf16) {
      std::vector<float> rows(static_cast<size_t>(spec.vocab * spec.width));
      for (int64_t id = 0; id < spec.vocab; ++id) from.Read(id, spec.width, rows.data() + id * spec.width);
      model_.table = Copy(rows);
      return;
    }
    const size_t row = static_cast<size_t>(spec.width) * 2;
    void* to = Bytes(spec.vocab * spec.width * 2);
    Do([&] {
      return cudaMemcpy2D(to, row, from.data, static_cast<size_t>(from.columns) * 2, row,
                          static_cast<size_t>(spec.vocab), cudaMemcpyHostToDevice);
    });
    model_.table = to;
  }

  const int device_;
  cudaError_t status_ = cudaSuccess;
  std::unique_ptr<CUstream_st, EndStream> stream_;
  std::vector<std::unique_ptr<void, FreeOnDevice>> kept_;  // all that model_, call_ and stage_ point to
  std::unique_ptr<void, FreePinned> host_stage_, host_logits_;
  int32_t* stage_ = nullptr;
  cuda::RouterModel model_;
  cuda::RouterCall call_;
};

}  // namespace

base::Result<void> CheckCudaRouter(const RouterSpec& spec) {
  if (spec.width > cuda::kRouterWidthMax || spec.head_dim() > cuda::kRouterHeadDimMax)
    return base::Fail("E_CUDA", "device cuda: router: found width " + std::to_string(spec.width) + " in " +
                                    std::to_string(spec.heads) + " heads, expected at most " +
                                    std::to_string(cuda::kRouterWidthMax) + ", and " +
                                    std::to_string(cuda::kRouterHeadDimMax) +
                                    " for each head; serve this model with the device cpu");
  return {};
}

base::Result<std::unique_ptr<serve::RouterDevice>> MakeCudaRouter(const RouterSpec& spec, const RouterWeights& weights,
                                                                  const serve::ModelShape& shape, int device) {
  if (auto fits = CheckCudaRouter(spec); !fits) return tl::unexpected(fits.error());
  auto made = std::make_unique<CudaRouter>(spec, weights, shape, device);
  if (made->status() == cudaSuccess) return made;
  (void)cudaGetLastError();  // told here; nobody else shall find it
  const int64_t table = RouterBytes(spec), pages = shape.route_pages * RouterPageBytes(spec);
  return base::Fail(
      made->status() == cudaErrorMemoryAllocation ? "E_MEMORY" : "E_CUDA",
      std::string("device cuda: router: found ") + cudaGetErrorString(made->status()) + ", expected room for about " +
          std::to_string((table + pages) >> 20) +
          " MiB; free some, lower kv_memory_percent, kv_tokens or route_tokens, or serve with the device cpu");
}

}  // namespace outrider::serve_gpu
