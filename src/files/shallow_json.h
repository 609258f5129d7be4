#pragma once
// JSON of files that people and other programs write. Values are printed in messages by recursion, so nesting is
// bounded.

#include <string_view>

#include <nlohmann/json.hpp>

namespace outrider::files {

constexpr int kJsonDepthMax = 64;

// A discarded value for text that is no JSON or nested deeper than kJsonDepthMax; never throws.
inline nlohmann::json ParseShallowJson(std::string_view text) {
  bool deep = false;
  const auto watch = [&deep](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    deep = deep || depth > kJsonDepthMax;
    return !deep;
  };
  nlohmann::json root = nlohmann::json::parse(text, watch, /*allow_exceptions=*/false);
  return deep ? nlohmann::json(nlohmann::json::value_t::discarded) : root;
}

}  // namespace outrider::files
