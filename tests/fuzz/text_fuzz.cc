// libFuzzer target for the text form of graphs and traces. Seeds: corpus/text.

#include <cstddef>
#include <cstdint>

#include "support/text_check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  outrider::trace::CheckGraphText(bytes);
  outrider::trace::CheckTracesText(bytes);
  return 0;
}
