#pragma once
// Logits changed by what a text holds already.

#include <cstdint>
#include <span>
#include <unordered_map>

namespace outrider::sampling {

struct Penalties {
  double presence = 0;    // taken off once from each token written so far
  double frequency = 0;   // taken off once for each time it was written
  double repetition = 1;  // divides positive and multiplies negative logits of all tokens of prompt and text
  bool None() const { return presence == 0 && frequency == 0 && repetition == 1; }
};

// How often a text holds each token; written: behind the prompt. Not thread-safe.
class TokenCounts {
 public:
  void AddPrompt(std::span<const int32_t> ids) {
    for (const int32_t id : ids) written_.try_emplace(id, 0);
  }
  void AddWritten(int32_t id) { ++written_[id]; }

  // Repetition first, then frequency and presence. Each logit changes by itself, so the order of tokens does not count.
  void Apply(const Penalties& penalties, std::span<float> logits) const {
    for (const auto& [id, written] : written_) {
      double logit = logits[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / penalties.repetition : logit * penalties.repetition;
      if (written > 0) logit -= penalties.presence + penalties.frequency * static_cast<double>(written);
      logits[static_cast<size_t>(id)] = static_cast<float>(logit);
    }
  }

 private:
  std::unordered_map<int32_t, int64_t> written_;
};

}  // namespace outrider::sampling
