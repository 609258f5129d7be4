#pragma once
// Programmer errors. A failed check throws CheckError; nothing is expected to catch it except the outermost frame.
//
//   OUTRIDER_CHECK(index < size, "index ", index, " of ", size);
//
// The message parts are only evaluated when the condition is false; each must have an operator<< to std::ostream.

#include <sstream>
#include <stdexcept>
#include <string>

namespace outrider::base {

// what() reads "file:line: check failed: condition: message".
class CheckError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

namespace internal {

struct CheckSite {
  const char* file;
  int line;
  const char* condition;
};

template <class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void FailCheck(CheckSite site, const Parts&... parts) {
  std::ostringstream text;
  text << site.file << ':' << site.line << ": check failed: " << site.condition;
  if constexpr (sizeof...(parts) > 0) {
    text << ": ";
    (text << ... << parts);
  }
  throw CheckError(text.str());
}

}  // namespace internal
}  // namespace outrider::base

#define OUTRIDER_CHECK(condition, ...)                                                                    \
  do {                                                                                                    \
    if (!(condition)) [[unlikely]]                                                                        \
      ::outrider::base::internal::FailCheck({__FILE__, __LINE__, #condition} __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)

// Debug builds only: the condition still has to compile in release builds, but is not evaluated there.
#ifdef NDEBUG
#define OUTRIDER_DCHECK(condition, ...)                              \
  do {                                                               \
    if (false) OUTRIDER_CHECK(condition __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)
#else
#define OUTRIDER_DCHECK(condition, ...) OUTRIDER_CHECK(condition __VA_OPT__(, ) __VA_ARGS__)
#endif
