#pragma once
// What differs between a build with and without CUDA. Implemented in cuda/ and no_cuda/; CMake picks one.

#include <ATen/core/Generator.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>

#include <cstdint>

namespace outrider::seam {

bool CudaBuilt();

// The default allocator of a device; never null for CPU.
c10::Allocator* AllocatorOf(c10::Device device);

// True when the bytes came from the device's own allocator, so that the record may own them.
bool OwnedByAllocator(const c10::DataPtr& pointer);

// The stream of the imperative thread, mirrored to the graph runner with each job. Opaque; 0 on the CPU.
int64_t CurrentStream();
void SetCurrentStream(int64_t stream);

// Opaque positions of the default generator of a CUDA device.
uint64_t CudaGeneratorOffset();
void SetCudaGeneratorOffset(uint64_t offset);

}  // namespace outrider::seam
