#pragma once
// Keys and values of the tokens that a text already has, in memory allocated once.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"
#include "model/config.h"

namespace outrider::model {

class KvCache {
 public:
  // `capacity`: tokens per text. `like` gives dtype and device.
  KvCache(const Config& config, int64_t batch, int64_t capacity, const at::Tensor& like) : capacity_(capacity) {
    const std::vector<int64_t> shape = {batch, config.kv_heads, capacity, config.head_dim};
    for (int64_t layer = 0; layer < config.layers; ++layer) {
      entries_.emplace_back(at::empty(shape, like.options()), at::empty(shape, like.options()));
    }
  }

  int64_t Length() const { return length_; }  // tokens of complete passes
  int64_t Capacity() const { return capacity_; }

  // Keys and values of all tokens so far, `k` and `v` ([B, kv_heads, S, head_dim]) at their end. Views into the cache.
  std::pair<at::Tensor, at::Tensor> Append(int64_t layer, const at::Tensor& k, const at::Tensor& v) {
    const int64_t end = length_ + k.size(2);
    OUTRIDER_CHECK(end <= capacity_, "a cache of ", capacity_, " tokens cannot hold ", end);
    auto& [keys, values] = entries_[layer];
    keys.slice(2, length_, end).copy_(k);
    values.slice(2, length_, end).copy_(v);
    return {keys.slice(2, 0, end), values.slice(2, 0, end)};
  }
  // The pass over `tokens` tokens has appended to every layer.
  void Advance(int64_t tokens) { length_ += tokens; }
  // The same text `batch` times, each with room for `capacity` tokens; for a cache of one text.
  KvCache Repeated(const Config& config, int64_t batch, int64_t capacity) const {
    OUTRIDER_CHECK(entries_.front().first.size(0) == 1 && capacity >= length_, "a cache of one text that fits");
    KvCache out(config, batch, capacity, entries_.front().first);
    for (size_t layer = 0; layer < entries_.size(); ++layer) {
      out.entries_[layer].first.slice(2, 0, length_).copy_(entries_[layer].first.slice(2, 0, length_));
      out.entries_[layer].second.slice(2, 0, length_).copy_(entries_[layer].second.slice(2, 0, length_));
    }
    out.length_ = length_;
    return out;
  }
  // Forgets all but the first `tokens`.
  void Truncate(int64_t tokens) { length_ = std::min(length_, tokens); }

 private:
  int64_t capacity_;
  int64_t length_ = 0;
  std::vector<std::pair<at::Tensor, at::Tensor>> entries_;
};

}  // namespace outrider::model
