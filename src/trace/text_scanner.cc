#include "trace/text_scanner.h"

#include <cctype>

namespace outrider::trace {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool IsWord(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

bool IsNameChar(char c) { return IsWord(c) || c == ':' || c == '.'; }

}  // namespace

void TextScanner::Fail(const std::string& reason) {
  if (failed_) return;
  failed_ = true;
  error_ = {"PARSE", "line " + std::to_string(line_) + ": " + reason};
}

void TextScanner::SkipBlank() {
  while (at_ < text_.size()) {
    if (text_.substr(at_, 2) == "//") {
      while (at_ < text_.size() && text_[at_] != '\n') ++at_;
    } else if (std::isspace(static_cast<unsigned char>(text_[at_]))) {
      line_ += text_[at_] == '\n';
      ++at_;
    } else {
      return;
    }
  }
}

bool TextScanner::Take(std::string_view token) {
  if (AtEnd() || text_.substr(at_, token.size()) != token) return false;
  const size_t end = at_ + token.size();
  const bool is_word = token.size() > 1 && IsWord(token.back());  // "p" is followed by its number at once
  if (is_word && end < text_.size() && IsWord(text_[end])) return false;
  at_ = end;
  SkipBlank();
  return true;
}

void TextScanner::Expect(std::string_view token) {
  if (!Take(token)) Fail("expected '" + std::string(token) + "'");
}

uint64_t TextScanner::Number(uint64_t max) {
  if (AtEnd() || !IsDigit(text_[at_])) {
    Fail("expected a number");
    return 0;
  }
  uint64_t number = 0;
  for (; at_ < text_.size() && IsDigit(text_[at_]); ++at_) {
    const uint64_t digit = static_cast<uint64_t>(text_[at_] - '0');
    if (number > (max - digit) / 10 || digit > max) {
      Fail("number exceeds " + std::to_string(max));
      return 0;
    }
    number = number * 10 + digit;
  }
  SkipBlank();
  return number;
}

std::string TextScanner::Name() {
  if (!AtEnd() && text_[at_] == '"') return QuotedName();
  std::string name;
  while (!AtEnd() && IsNameChar(text_[at_])) name += text_[at_++];
  if (name.empty()) Fail("expected a name");
  SkipBlank();
  return name;
}

std::string TextScanner::QuotedName() {
  std::string name;
  ++at_;
  while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\n') {
    const bool escaped = text_[at_] == '\\' && at_ + 1 < text_.size();
    if (escaped) ++at_;
    name += escaped && text_[at_] == 'n' ? '\n' : text_[at_];
    ++at_;
  }
  if (at_ == text_.size() || text_[at_] != '"') {
    Fail("a quoted name does not end");
    return "";
  }
  ++at_;
  SkipBlank();
  return name;
}

}  // namespace outrider::trace
