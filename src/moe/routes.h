#pragma once
// Expert ids along a text: hysteresis, and how often the expert changes.

#include <cstdint>
#include <span>
#include <vector>

namespace outrider::moe {

// Ids [S] of one text from logits [S, N]: the highest logit, ties to the lowest index; with tau > 0 the previous id
// stays until another logit leads its own by at least tau (nats). `previous` is the id before the text, -1 for none.
std::vector<int64_t> Route(std::span<const float> logits, int64_t experts, double tau, int64_t previous = -1);

struct RouteStats {
  std::vector<int64_t> load;         // tokens per expert
  int64_t pairs = 0, stays = 0;      // neighbouring tokens of one text; those with equal ids
  std::vector<int64_t> run_lengths;  // [k]: runs of 2^k to 2^(k+1) - 1 tokens

  explicit RouteStats(int64_t experts = 1) : load(static_cast<size_t>(experts), 0) {}
  void Add(std::span<const int64_t> ids);  // the ids of one whole text
  double StayRate() const { return pairs == 0 ? 0 : static_cast<double>(stays) / static_cast<double>(pairs); }
  double Entropy() const;  // of the load, as a share of log N; 1: perfectly balanced. 1 when N is 1
};

}  // namespace outrider::moe
