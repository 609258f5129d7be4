#pragma once
// What differs between a build with and without CUDA. Implemented in cuda/ and no_cuda/; CMake picks one.

#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <functional>
#include <memory>

namespace outrider::seam {

bool CudaBuilt();

// The default allocator of a device; never null for CPU.
c10::Allocator* AllocatorOf(c10::Device device);

// True when the bytes came from the device's own allocator, so that the record may own them.
bool OwnedByAllocator(const c10::DataPtr& pointer);

// A compute stream, named by value so that it can travel between threads. Device -1: the CPU.
struct DeviceStream {
  int64_t id = 0;
  int32_t device = -1;
  friend bool operator==(const DeviceStream&, const DeviceStream&) = default;
};
DeviceStream CurrentStream();
void SetCurrentStream(DeviceStream stream);
// Whether what this thread launches on `device` now goes into a graph instead of running.
bool StreamIsCaptured(c10::Device device);
// Keeps the bytes from being reused before what `stream` has been given so far is done.
void RecordStream(const c10::DataPtr& pointer, c10::Stream stream);

// Marks the end of a step on the calling thread's stream and waits until no more than `steps_max` marked steps are
// unfinished on the device. Graph runner only.
void BoundDeviceRunAhead(int steps_max);

// Kernels captured once and launched as one.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  // On the calling thread's stream, without waiting for it.
  virtual void Replay() = 0;
};

// Private memory for captures that run one after another. What a capture allocates and still holds at its end stays where
// it is for every replay; the rest may be reused by later captures in the same memory.
class GraphMemory {
 public:
  virtual ~GraphMemory() = default;
  // Runs `body` on a stream of its own; its kernels are recorded, not executed. Throws what the body or the capture throws;
  // nothing is left behind then.
  virtual std::unique_ptr<DeviceGraph> Capture(const std::function<void()>& body) = 0;
};

// Null where the device has no graphs.
std::unique_ptr<GraphMemory> NewGraphMemory(c10::Device device);

}  // namespace outrider::seam
