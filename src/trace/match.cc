#include "trace/match.h"

#include <algorithm>

namespace outrider::trace {
namespace {

bool Knows(const Slot& slot, const Input& input) {
  return std::find(slot.producers.begin(), slot.producers.end(), input) != slot.producers.end();
}

bool Fits(const Slot& slot, const Input& input) {
  // Slots never mix kValue with other origins, so the first producer speaks for all.
  if (input.origin == Origin::kValue) return slot.producers.front().origin == Origin::kValue;
  return Knows(slot, input);
}

template <class Accepts>
bool AllSlots(const Node& node, std::span<const Input> inputs, Accepts accepts) {
  return std::equal(node.inputs.begin(), node.inputs.end(), inputs.begin(), inputs.end(), accepts);
}

}  // namespace

bool InputsAccepted(const Node& node, std::span<const Input> inputs) { return AllSlots(node, inputs, Knows); }

bool InputsFit(const Node& node, std::span<const Input> inputs) { return AllSlots(node, inputs, Fits); }

bool Overlap(const Node& a, const Node& b, std::span<const Input> extra) {
  if (a.signature != b.signature || a.inputs.size() != b.inputs.size()) return false;
  for (size_t i = 0; i < a.inputs.size(); ++i) {
    const auto known_to_b = [&](const Input& input) { return Knows(b.inputs[i], input); };
    const bool shared = std::any_of(a.inputs[i].producers.begin(), a.inputs[i].producers.end(), known_to_b) ||
                        (i < extra.size() && known_to_b(extra[i]));
    if (!shared) return false;
  }
  return true;
}

}  // namespace outrider::trace
