#pragma once
// Which FFN channels belong to which expert (Read-ME, arXiv 2410.19123, section 3). Expert i means the same data in all
// layers; a channel may belong to several experts, and is stored once.

#include <cstdint>
#include <span>
#include <vector>

namespace outrider::moe {

// How masks of tokens are put on activations.
enum class MaskForm : uint8_t {
  kLean,       // a function of our own that keeps for the backward pass ids, not the masks of all tokens
  kOperators,  // torch's operators alone, which co-execution covers; keeps [T, D] more per layer
};

constexpr int64_t kExpertsMax = 16;

// Bit i is set iff the channel belongs to expert i. 0: a dead channel, in no expert.
using Signature = uint16_t;

// Channels of one layer by kind. permanent: in every expert; united: in at least one; dead: in none.
struct LayerCounts {
  int64_t permanent = 0;
  int64_t united = 0;
  int64_t dead = 0;
  int64_t live_signatures = 0;  // distinct signatures other than 0
  std::vector<int64_t> active;  // per expert
  friend bool operator==(const LayerCounts&, const LayerCounts&) = default;
};

// experts [N], layers [L], channels [D] per layer. Experts of a layer may differ in size.
class Masks {
 public:
  Masks() = default;
  Masks(int64_t experts, int64_t layers, int64_t channels);  // all channels dead

  int64_t experts() const { return experts_; }
  int64_t layers() const { return layers_; }
  int64_t channels() const { return channels_; }

  // Replaces the channel set of one expert in one layer.
  void SetExpert(int64_t layer, int64_t expert, std::span<const int64_t> channels);
  // All signatures of a layer, [D].
  void SetLayer(int64_t layer, std::span<const Signature> signatures);

  bool Has(int64_t layer, int64_t expert, int64_t channel) const;
  std::span<const Signature> Layer(int64_t layer) const;
  // Ascending channel indices of one expert.
  std::vector<int64_t> ChannelsOf(int64_t layer, int64_t expert) const;

  LayerCounts Count(int64_t layer) const;
  // Channels of expert `to` that expert `from` lacks: what a swap has to load.
  int64_t Delta(int64_t layer, int64_t from, int64_t to) const;
  double MeanDelta(int64_t layer) const;  // over all ordered pairs of different experts; 0 with one expert
  // The signature of a channel in every expert.
  Signature Full() const { return static_cast<Signature>((1U << experts_) - 1U); }
  // 64 bits over shape and signatures, the same on every machine.
  uint64_t Hash() const;

  friend bool operator==(const Masks&, const Masks&) = default;

 private:
  size_t At(int64_t layer, int64_t channel) const;

  int64_t experts_ = 0, layers_ = 0, channels_ = 0;
  std::vector<Signature> signatures_;  // [L, D]
};

}  // namespace outrider::moe
