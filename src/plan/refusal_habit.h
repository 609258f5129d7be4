#pragma once
// Recording a step costs time. Is it worth trying again with a program whose recordings are refused for one and the
// same reason?

#include <string>

namespace outrider::plan {

class RefusalHabit {
 public:
  // Once per recording, with the reason why nothing can be made of it, empty where something can. True: so many in a
  // row were refused alike that the next one will be.
  bool Note(const std::string& refusal) {
    alike_ = refusal.empty() ? 0 : refusal == last_ ? alike_ + 1 : 1;
    last_ = refusal;
    return alike_ >= kMost;
  }

 private:
  static constexpr int kMost = 4;
  std::string last_;
  int alike_ = 0;
};

}  // namespace outrider::plan
