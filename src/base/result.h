#pragma once
// Expected failures: a function that may fail for reasons its caller has to handle returns Result<T>.

#include <string>
#include <utility>

#include <tl/expected.hpp>

namespace outrider::base {

struct Error {
  std::string code;     // stable, for programs: "PARSE", "NOT_FOUND"
  std::string message;  // for people; names the place and the value
  std::string Text() const { return code + ": " + message; }
  friend bool operator==(const Error&, const Error&) = default;
};

template <class T>
using Result = tl::expected<T, Error>;

// Returned from a function with a Result: `return Fail("PARSE", "line 3: ...");`
[[nodiscard]] inline tl::unexpected<Error> Fail(std::string code, std::string message) {
  return tl::unexpected<Error>(Error{std::move(code), std::move(message)});
}

}  // namespace outrider::base
