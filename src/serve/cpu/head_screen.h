#pragma once
// Which row of a head gives the largest logit, with most of the head unread. A copy in whole numbers gives estimates,
// and the length of what each row lost in it tells how far an estimate may be off. Only rows that may be the largest
// are computed from the head itself, so the answer is the one that all of its logits would give, ties included.
//
// With w a row, v its copy, x what comes in and y that rounded to whole numbers of 16 bits:
//   |w x - v y|  <=  |w - v| |x| + |v| |x - y|  <=  reach |x|, what fp32 rounds away included.

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/matrix.h"
#include "kernels/scratch.h"
#include "kernels/workers.h"

namespace outrider::serve {

// Kept between calls, so that nothing is allocated anew.
struct ScreenMemory {
  struct Row {
    float norm = 0;              // of x
    float least = 0;             // that the largest logit is
    std::vector<float> highest;  // that a logit of each block of rows may be
    std::vector<int32_t> ids;    // rows that may be the largest, ascending
  };
  kernels::Scratch scratch;
  std::vector<float> logits;  // estimates, computed ones in their place
  std::vector<Row> rows;
  std::vector<std::pair<int64_t, int64_t>> panels;  // row of x, panel of the head
};

class HeadScreen {
 public:
  HeadScreen() = default;
  // Of a head without bias. It is off for one that is in whole numbers already, has rows that are not finite or very
  // long, or columns that are no whole blocks.
  static HeadScreen Of(const kernels::Matrix& head);

  bool on() const { return !reach_.empty(); }
  int64_t bytes() const { return copy_.bytes() + static_cast<int64_t>(reach_.size()) * 4; }

  // best [tokens]: as LikeliestId of the logits that Linear gives for x [tokens, columns]. Returns how many bytes of
  // `head`, the matrix given to Of, it read; nothing, and nothing is known then, if some x is not finite, or very long
  // or short.
  std::optional<int64_t> Likeliest(const kernels::Matrix& head, const float* x, std::span<int64_t> best,
                                   ScreenMemory& memory, kernels::Workers& workers) const;

 private:
  bool TakeNorms(const float* x, ScreenMemory& memory) const;
  void FindBounds(const float* estimates, ScreenMemory::Row& row) const;
  void FindCandidates(const float* estimates, ScreenMemory::Row& row) const;
  int64_t ComputeDoubtful(const kernels::Matrix& head, const float* x, ScreenMemory& memory,
                          kernels::Workers& workers) const;

  kernels::Matrix copy_;
  std::vector<float> reach_;  // per row; empty: off
};

}  // namespace outrider::serve
