#include "seam/backend.h"

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/CPUAllocator.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace outrider::seam {
namespace {

c10::cuda::CUDAStream StreamOf(DeviceStream stream) {
  const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(stream.device));
  return c10::cuda::CUDAStream(c10::Stream(c10::Stream::UNSAFE, device, stream.id));
}

}  // namespace

bool CudaBuilt() { return true; }

c10::Allocator* AllocatorOf(c10::Device device) {
  return device.is_cpu() ? c10::GetCPUAllocator() : c10::cuda::CUDACachingAllocator::get();
}

bool OwnedByAllocator(const c10::DataPtr& pointer) {
  static const auto cpu_deleter = c10::GetCPUAllocator()->raw_deleter();
  if (pointer.device().is_cpu()) return pointer.get_deleter() == cpu_deleter;
  // The CUDA allocator exists only after CUDA was initialised; a CUDA pointer proves that it was.
  return pointer.device().is_cuda() && pointer.get_deleter() == c10::cuda::CUDACachingAllocator::get()->raw_deleter();
}

DeviceStream CurrentStream() {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  return {stream.id(), stream.device_index()};
}

void SetCurrentStream(DeviceStream stream) {
  if (stream.device < 0) return;
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(stream.device));
  // A thread that was never asked to set another device has no context yet; cuBLAS complains.
  thread_local bool has_context = false;
  if (!std::exchange(has_context, true)) C10_CUDA_CHECK(cudaFree(nullptr));
  c10::cuda::setCurrentCUDAStream(StreamOf(stream));
}

bool StreamIsCaptured(c10::Device device) {
  return device.is_cuda() && c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

void RecordStream(const c10::DataPtr& pointer, c10::Stream stream) {
  c10::cuda::CUDACachingAllocator::recordStream(pointer, c10::cuda::CUDAStream(stream));
}

void BoundDeviceRunAhead(int steps_max) {
  // Events of the marked steps, per stream, oldest first.
  static auto* marks = new std::map<cudaStream_t, std::deque<cudaEvent_t>>();
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  auto& pending = (*marks)[stream];
  cudaEvent_t mark = nullptr;
  if (static_cast<int>(pending.size()) > steps_max) {
    mark = pending.front();
    pending.pop_front();
    C10_CUDA_CHECK(cudaEventSynchronize(mark));
  } else {
    C10_CUDA_CHECK(cudaEventCreateWithFlags(&mark, cudaEventDisableTiming | cudaEventBlockingSync));
  }
  C10_CUDA_CHECK(cudaEventRecord(mark, stream));
  pending.push_back(mark);
}

namespace {

// The workspace of matrix products that captured kernels write to. torch keeps one per thread and stream, and whoever wants
// the memory back frees them all (torch.compile does so before its own captures); so those of the capture stream are in
// torch's hands only while a capture runs. Graphs run one after another, hence one serves them all.
class Workspaces {
 public:
  explicit Workspaces(cudaStream_t stream) : stream_(stream) {
    PutBack(at::cuda::cublas_handle_stream_to_workspace(), Kept().first);
    PutBack(at::cuda::cublaslt_handle_stream_to_workspace(), Kept().second);
    (void)at::cuda::getCurrentCUDABlasHandle();  // allocates outside of the capture
  }
  ~Workspaces() {
    Take(at::cuda::cublas_handle_stream_to_workspace(), Kept().first);
    Take(at::cuda::cublaslt_handle_stream_to_workspace(), Kept().second);
  }
  Workspaces(const Workspaces&) = delete;
  Workspaces& operator=(const Workspaces&) = delete;

 private:
  using Nodes = std::vector<decltype(at::cuda::WorkspaceMapWithMutex::map)::node_type>;

  // Never destroyed: CUDA may be gone by then.
  static std::pair<Nodes, Nodes>& Kept() {
    static auto* kept = new std::pair<Nodes, Nodes>();
    return *kept;
  }
  static void PutBack(at::cuda::WorkspaceMapWithMutex& workspaces, Nodes& kept) {
    const std::lock_guard<std::shared_mutex> lock(workspaces.mutex);
    for (auto& node : kept) workspaces.map.insert(std::move(node));
    kept.clear();
  }
  void Take(at::cuda::WorkspaceMapWithMutex& workspaces, Nodes& kept) const {
    const std::lock_guard<std::shared_mutex> lock(workspaces.mutex);
    for (auto it = workspaces.map.begin(); it != workspaces.map.end();) {
      const auto here = it++;
      if (std::get<1>(here->first) == static_cast<void*>(stream_)) kept.push_back(workspaces.map.extract(here));
    }
  }

  cudaStream_t stream_;
};

class CudaGraph final : public DeviceGraph {
 public:
  explicit CudaGraph(std::shared_ptr<int> living) : living_(std::move(living)) { ++*living_; }
  ~CudaGraph() override { --*living_; }
  at::cuda::CUDAGraph& Get() { return graph_; }
  void Replay() override { graph_.replay(); }

 private:
  at::cuda::CUDAGraph graph_;
  std::shared_ptr<int> living_;
};

class CudaGraphMemory final : public GraphMemory {
 public:
  explicit CudaGraphMemory(c10::Device device) : device_(device) {}

  std::unique_ptr<DeviceGraph> Capture(const std::function<void()>& body) override {
    // One stream for all captures, since workspaces belong to a stream.
    static const auto stream = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device_.index());
    const auto compute = c10::cuda::getCurrentCUDAStream(device_.index());
    const c10::cuda::CUDAStreamGuard on_capture_stream(stream);
    const Workspaces workspaces(stream.stream());
    // A capture begins by setting the random generators' device-side position, and replays read and set the same memory.
    Order(compute, stream);
    // The allocator gives a pool up with the last graph captured in it.
    if (*living_ == 0) pool_ = at::cuda::graph_pool_handle();
    auto graph = std::make_unique<CudaGraph>(living_);
    // Other threads go on allocating, pinning memory and querying events meanwhile.
    graph->Get().capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
    try {
      body();
      graph->Get().capture_end();
    } catch (...) {
      Abandon(stream.stream());
      Order(stream, compute);
      throw;
    }
    Order(stream, compute);
    return graph;
  }

 private:
  // What `later` is given from here on runs after what `earlier` has been given so far.
  static void Order(const c10::cuda::CUDAStream& earlier, const c10::cuda::CUDAStream& later) {
    cudaEvent_t reached = nullptr;
    C10_CUDA_CHECK(cudaEventCreateWithFlags(&reached, cudaEventDisableTiming));
    C10_CUDA_CHECK(cudaEventRecord(reached, earlier.stream()));
    C10_CUDA_CHECK(cudaStreamWaitEvent(later.stream(), reached, 0));
    C10_CUDA_CHECK(cudaEventDestroy(reached));
  }

  // A failed capture: the stream leaves capture mode, the allocators stop to place memory in the pool.
  void Abandon(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone) {
      cudaGraph_t unfinished = nullptr;
      if (cudaStreamEndCapture(stream, &unfinished) == cudaSuccess && unfinished != nullptr) (void)cudaGraphDestroy(unfinished);
    }
    (void)cudaGetLastError();  // the failure has been reported by the exception
    c10::cuda::CUDACachingAllocator::endAllocateToPool(device_.index(), pool_);
    c10::cuda::CUDACachingAllocator::releasePool(device_.index(), pool_);
    try {
      at::getHostAllocator(at::kCUDA)->end_allocate_to_pool(pool_);
    } catch (const c10::Error&) {
      // this torch does not route host memory of captures
    }
    CaptureNothing(stream);
  }

  // The random generators believe that a failed capture goes on until the next one ends.
  static void CaptureNothing(cudaStream_t stream) {
    at::cuda::CUDAGraph graph;
    const auto bytes = c10::cuda::CUDACachingAllocator::get()->allocate(16);
    graph.capture_begin(at::cuda::graph_pool_handle(), cudaStreamCaptureModeThreadLocal);
    (void)cudaMemsetAsync(bytes.get(), 0, 16, stream);
    graph.capture_end();
  }

  c10::Device device_;
  c10::MempoolId_t pool_{0, 0};
  std::shared_ptr<int> living_ = std::make_shared<int>(0);  // graphs captured in the pool that still exist
};

}  // namespace

std::unique_ptr<GraphMemory> NewGraphMemory(c10::Device device) {
  return device.is_cuda() ? std::make_unique<CudaGraphMemory>(device) : nullptr;
}

}  // namespace outrider::seam
