#pragma once
// Traces and graphs written as text, for tests. A text that does not parse ends the test with the parser's message.

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trace/text.h"

namespace outrider::trace {

template <class T>
T ValueOrThrow(base::Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  return std::move(*result);
}

inline std::vector<Trace> TracesFrom(std::string_view text) { return ValueOrThrow(ParseTraces(text)).traces; }

inline Trace TraceFrom(std::string_view ops) { return TracesFrom("trace\n" + std::string(ops)).at(0); }

}  // namespace outrider::trace
