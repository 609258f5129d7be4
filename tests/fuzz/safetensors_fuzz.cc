// A header is either refused with a message or describes tensors that lie inside the file, and is written back as read.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "files/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace outrider::files;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (uint64_t data_bytes : {0, 8, 64}) {
    auto header = ParseHeader(text, 8 + size + data_bytes);
    if (!header) {
      if (header.error().message.empty()) std::abort();
      continue;
    }
    for (const auto& entry : header->tensors) {
      if (entry.end < entry.begin || entry.end > data_bytes) std::abort();
    }
    const std::string again = WriteHeader(header->tensors, header->metadata);
    if (!ParseHeader(again, 8 + again.size() + data_bytes)) std::abort();
  }
  return 0;
}
