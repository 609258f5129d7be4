#pragma once
// Keys and values of one attention layer in pages, and attention over them for the tokens of a pass. Shared by the
// backbone and the router.

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/attention.h"
#include "kernels/engine.h"
#include "kernels/scratch.h"
#include "kernels/workers.h"

namespace outrider::serve {

// The tokens of a pass, run behind run.
struct PassTokens {
  struct Limits {
    int64_t vocab = 0, context = 0, pages = 0;
  };

  std::vector<int32_t> ids;
  std::vector<int64_t> positions;
  std::vector<const int32_t*> pages;  // of the token's text

  int64_t count() const { return static_cast<int64_t>(ids.size()); }
  // Token `token` is the one behind token - 1 in the same text.
  bool GoesOn(int64_t token) const {
    const auto t = static_cast<size_t>(token);
    return pages[t] == pages[t - 1] && positions[t] == positions[t - 1] + 1;
  }
  // Appends tokens [0, ids.size()) of run number `run`. E_TOKEN an id outside of the vocabulary, E_CONTEXT positions
  // outside of the context, E_PAGES too few pages, or a page that does not exist.
  base::Result<void> Add(size_t run, std::span<const int32_t> ids, int64_t position, std::span<const int32_t> pages,
                         const Limits& limits);
};

// cos and sin of the rotary angles of the tokens of a pass, [tokens, head_dim / 2].
class RotaryTable {
 public:
  explicit RotaryTable(std::vector<float> frequencies) : frequencies_(std::move(frequencies)) {}
  void Fill(std::span<const int64_t> positions);
  int64_t half() const { return static_cast<int64_t>(frequencies_.size()); }
  const float* cos(int64_t token) const { return cos_.data() + token * half(); }
  const float* sin(int64_t token) const { return sin_.data() + token * half(); }

 private:
  std::vector<float> frequencies_;  // radians per position
  std::vector<float> cos_, sin_;
};

class PagedCache {
 public:
  // Throws std::bad_alloc.
  PagedCache(const kernels::KvShape& shape, int64_t pages);
  float* Page(int64_t page) { return memory() + page * shape_.PageFloats(); }
  const kernels::KvShape& shape() const { return shape_; }

  struct Call {
    float* qkv = nullptr;  // [tokens, heads * (group + 2) * head_dim]: queries, keys, values; turned in place
    float* out = nullptr;  // [tokens, heads * group * head_dim]
    int64_t window = 0;    // positions seen, the token's own included; 0: all
    float scale = 1;
  };
  // Turns queries and keys, writes keys and values into their pages, and mixes the values.
  void Attend(const PassTokens& tokens, const RotaryTable& rotary, const Call& call, kernels::Scratch& scratch,
              kernels::Workers& workers);

 private:
  float* memory() { return reinterpret_cast<float*>(memory_.data()); }
  void Store(const PassTokens& tokens, const RotaryTable& rotary, const Call& call, int64_t token);

  kernels::KvShape shape_;
  kernels::AlignedBytes memory_;
};

}  // namespace outrider::serve
