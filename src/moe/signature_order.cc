#include "moe/signature_order.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <string_view>

#include "base/check.h"
#include "moe/philox.h"

namespace outrider::moe {
namespace {

// One bit per digit, flipped one after the other: 10, 10, 10, 10, 8, 10 and 7 runs for experts 0 to 6.
constexpr std::string_view kSevenFlips =
    "161463410320652602035134315143262545626126562653503252340140454345424546121301020106141514163230210323045150353152"
    "0503"
    "252130503";

std::vector<Signature> Follow(std::string_view flips) {
  std::vector<Signature> order = {0};
  for (const char digit : flips) order.push_back(static_cast<Signature>(order.back() ^ (1U << (digit - '0'))));
  return order;
}

// Depth-first search for a path over all signatures by one-bit moves in which no bit moves more than `cap` times.
// Signatures with few ways on and bits that moved seldom go first; the weights were found by trial.
class Search {
 public:
  Search(int64_t experts, int64_t cap, uint32_t attempt)
      : experts_(experts), cap_(cap), attempt_(attempt), visited_(size_t{1} << experts, false) {}

  std::optional<std::vector<Signature>> Run() {
    visited_[0] = true;
    path_ = {0};
    if (!Extend()) return std::nullopt;
    return path_;
  }

 private:
  struct Move {
    int64_t score = 0;
    unsigned bit = 0;
    auto operator<=>(const Move&) const = default;
  };

  int64_t WaysOn(Signature s) const {
    int64_t ways = 0;
    for (int64_t b = 0; b < experts_; ++b) ways += visited_[s ^ (1U << b)] ? 0 : 1;
    return ways;
  }

  std::vector<Move> Moves() {
    std::vector<Move> moves;
    for (unsigned b = 0; b < static_cast<unsigned>(experts_); ++b) {
      const auto next = static_cast<Signature>(path_.back() ^ (1U << b));
      if (visited_[next] || used_[b] >= cap_) continue;
      const uint64_t draw = Random64(0, Use::kOrder, attempt_, static_cast<uint32_t>(path_.size()), b);
      moves.push_back({10 * WaysOn(next) + 7 * used_[b] + static_cast<int64_t>(Below(draw, 10)), b});
    }
    std::ranges::sort(moves);
    return moves;
  }

  bool Extend() {
    if (path_.size() == visited_.size()) return true;
    if (++steps_ > kStepsMax) return false;
    for (const Move& move : Moves()) {
      const auto next = static_cast<Signature>(path_.back() ^ (1U << move.bit));
      visited_[next] = true;
      ++used_[move.bit];
      path_.push_back(next);
      if (Extend()) return true;
      path_.pop_back();
      --used_[move.bit];
      visited_[next] = false;
    }
    return false;
  }

  static constexpr int64_t kStepsMax = 6'000;
  int64_t experts_, cap_;
  uint32_t attempt_;
  int64_t steps_ = 0;
  std::vector<bool> visited_;
  std::array<int64_t, kOrderedExpertsMax> used_ = {};
  std::vector<Signature> path_;
};

}  // namespace

std::vector<Signature> BalancedOrder(int64_t experts) {
  OUTRIDER_CHECK(experts >= 1 && experts <= kOrderedExpertsMax, experts, " experts, at most ", kOrderedExpertsMax);
  if (experts == 7) return Follow(kSevenFlips);
  constexpr uint32_t kAttempts = 20;
  const int64_t moves = (int64_t{1} << experts) - 1;
  for (int64_t cap = (moves + experts - 1) / experts;; ++cap) {
    for (uint32_t attempt = 0; attempt < kAttempts; ++attempt) {
      if (auto order = Search(experts, cap, attempt).Run()) return *std::move(order);
    }
  }
}

int64_t RunsOf(const std::vector<Signature>& order, int64_t expert) {
  int64_t runs = 0;
  bool inside = false;
  for (const Signature s : order) {
    const bool set = ((s >> expert) & 1) != 0;
    runs += set && !inside ? 1 : 0;
    inside = set;
  }
  return runs;
}

}  // namespace outrider::moe
