#pragma once

namespace outrider::kernels::cuda {

// What gate `g` and up `u` of a channel make its hidden number.
__device__ __forceinline__ float SiluTimes(float g, float u) { return __fmul_rn(__fdividef(g, 1.0F + __expf(-g)), u); }

}  // namespace outrider::kernels::cuda
