#include "seam/kernel_code.h"

#include <link.h>

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

namespace outrider::seam {
namespace {

struct Range {
  uintptr_t begin, end;
};

// Bindings (libtorch_python) and extensions are none of them.
std::vector<Range> KernelCode() {
  std::vector<Range> ranges;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        const std::string_view path = info->dlpi_name;
        const std::string_view name = path.substr(path.rfind('/') + 1);
        if (!name.starts_with("libtorch_cpu.") && !name.starts_with("libtorch_cuda")) return 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& part = info->dlpi_phdr[i];
          if (part.p_type != PT_LOAD || (part.p_flags & PF_X) == 0) continue;
          const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
          static_cast<std::vector<Range>*>(out)->push_back({begin, begin + part.p_memsz});
        }
        return 0;
      },
      &ranges);
  return ranges;
}

}  // namespace

bool InKernelLibrary(const void* address) {
  static const std::vector<Range> code = KernelCode();
  const auto at = reinterpret_cast<uintptr_t>(address);
  return std::any_of(code.begin(), code.end(), [at](Range range) { return range.begin <= at && at < range.end; });
}

}  // namespace outrider::seam
