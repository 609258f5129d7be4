// Options are either refused with a message, or written back as read, and then differ from themselves in nothing.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "moe/options.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace outrider::moe;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto options = ParseOptions(text);
  if (!options) {
    if (options.error().code != "E_OPTION" || options.error().message.empty()) std::abort();
    return 0;
  }
  if (options->experts_count < 1 || !(options->experts_keep > 0) || options->batch < 1) std::abort();
  if (WindowTokens(*options) < 0 || AdapterRank(*options) < 0) std::abort();
  for (const double tau : EvalTaus(*options)) {
    if (!(tau >= 0)) std::abort();
  }
  const auto again = ParseOptions(ToJson(*options));
  if (!again || !Difference(*again, *options).empty() || ToJson(*again) != ToJson(*options)) std::abort();
  return 0;
}
