#pragma once
// How many tokens texts lately wrote.

#include <cstdint>

namespace outrider::serve {

// Tokens by ends, those of texts that go on included: short texts end first, and a mean over ends would be too low.
class TextLengths {
 public:
  void Wrote(int64_t tokens) { tokens_ += static_cast<double>(tokens); }

  void Ended() {
    ends_ += 1;
    if (ends_ < kEnds) return;
    ends_ /= 2;
    tokens_ /= 2;
  }

  // 0 before any ended.
  double Mean() const { return ends_ > 0 ? tokens_ / ends_ : 0; }

 private:
  static constexpr double kEnds = 64;  // what was before counts half

  double tokens_ = 0, ends_ = 0;
};

}  // namespace outrider::serve
