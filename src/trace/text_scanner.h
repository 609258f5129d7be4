#pragma once
// Reads the text form token by token. The first mistake wins: it is kept, and everything read after it is empty.

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace outrider::trace {

class TextScanner {
 public:
  explicit TextScanner(std::string_view text) : text_(text) { SkipBlank(); }

  bool AtEnd() const { return failed_ || at_ == text_.size(); }
  bool Failed() const { return failed_; }

  // Takes `token` if it comes next. A token that is a word must end where it ends in the text.
  bool Take(std::string_view token);
  // Takes `token` or fails.
  void Expect(std::string_view token);
  // A decimal number of at most `max`, else fails.
  uint64_t Number(uint64_t max);
  // A plain or a quoted name, else fails.
  std::string Name();

  void Fail(const std::string& reason);
  base::Error Failure() const { return error_; }

 private:
  void SkipBlank();
  std::string QuotedName();

  std::string_view text_;
  size_t at_ = 0;
  size_t line_ = 1;
  bool failed_ = false;
  base::Error error_;
};

}  // namespace outrider::trace
