#include "seam/backend.h"

#include <c10/core/CPUAllocator.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <deque>
#include <map>
#include <utility>

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

}  // namespace outrider::seam
