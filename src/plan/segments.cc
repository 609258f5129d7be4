#include "plan/segments.h"

#include <algorithm>

#include "base/check.h"

namespace outrider::plan {
namespace {

bool HasEffect(const LinearOp& op) { return op.persistent_write || op.rng; }

Part MakePart(std::span<const LinearOp> ops, uint32_t begin, uint32_t end) {
  const auto first = ops.begin() + begin;
  const auto last = ops.begin() + end;
  Part part{begin, end, end, false};
  const auto tail = std::find_if(first, last, [](const LinearOp& op) { return op.late_bound; });
  part.tail_begin = static_cast<uint32_t>(tail - ops.begin());
  part.needs_pre_image = end < ops.size() && std::any_of(first, last, HasEffect);
  return part;
}

}  // namespace

std::vector<Part> CutParts(std::span<const LinearOp> ops, PreImages pre_images) {
  std::vector<Part> parts;
  uint32_t begin = 0;
  bool must_cut = false;
  bool may_cut = false;
  bool has_effect = false;
  for (uint32_t i = 0; i < ops.size(); ++i) {
    must_cut = must_cut || ops[i].fetched;
    may_cut = may_cut || ops[i].ends_backward;
    has_effect = has_effect || HasEffect(ops[i]);

    const bool is_last = i + 1 == ops.size();
    OUTRIDER_CHECK(is_last || ops[i].event <= ops[i + 1].event, "event numbers decrease behind op ", i);
    if (!is_last && ops[i].event == ops[i + 1].event) continue;

    const bool nothing_to_undo = !has_effect || pre_images == PreImages::kKept;
    if (is_last || must_cut || (may_cut && nothing_to_undo)) {
      parts.push_back(MakePart(ops, begin, i + 1));
      begin = i + 1;
      has_effect = false;
    }
    must_cut = false;
    may_cut = false;
  }
  return parts;
}

}  // namespace outrider::plan
