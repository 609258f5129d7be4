#include "seam/backend.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

namespace outrider::seam {

bool CudaBuilt() { return false; }

c10::Allocator* AllocatorOf(c10::Device device) {
  TORCH_CHECK(device.is_cpu(), "outrider was built without CUDA, got a tensor on ", device.str());
  return c10::GetCPUAllocator();
}

bool OwnedByAllocator(const c10::DataPtr& pointer) {
  static const auto cpu_deleter = c10::GetCPUAllocator()->raw_deleter();
  return pointer.device().is_cpu() && pointer.get_deleter() == cpu_deleter;
}

DeviceStream CurrentStream() { return {}; }
void SetCurrentStream(DeviceStream) {}
bool StreamIsCaptured(c10::Device) { return false; }
void RecordStream(const c10::DataPtr&, c10::Stream) {}
void BoundDeviceRunAhead(int) {}
std::unique_ptr<GraphMemory> NewGraphMemory(c10::Device) { return nullptr; }

}  // namespace outrider::seam
