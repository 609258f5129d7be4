// A model config is either refused with a message, or sound, and written back as read.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "spec/config.h"

namespace {

bool Sound(const outrider::spec::Config& c) {
  const auto known = [&](const std::vector<int64_t>& ids) {
    for (const int64_t id : ids) {
      if (id < 0 || id >= c.vocab) return false;
    }
    return true;
  };
  return c.hidden_size > 0 && c.layers > 0 && c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0 &&
         c.head_dim > 0 && c.head_dim % 2 == 0 && c.ffn > 0 && c.vocab > 0 && c.max_positions > 0 && c.rope_theta > 0 &&
         c.rms_eps > 0 && c.windows.size() == static_cast<size_t>(c.layers) && known(c.end_ids) && known(c.begin_ids);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace outrider::spec;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = ParseConfig(text, "config.json");
  if (!config) {
    if (config.error().code != "E_CONFIG" || config.error().message.empty()) std::abort();
    return 0;
  }
  if (!Sound(*config)) std::abort();
  const auto again = ParseConfig(ToJson(*config, "bfloat16"), "config.json");
  if (!again || *again != *config) std::abort();
  return 0;
}
