#pragma once

namespace outrider::seam {

// Whether `address` lies in the code of a library that holds torch's kernels.
bool InKernelLibrary(const void* address);

}  // namespace outrider::seam
