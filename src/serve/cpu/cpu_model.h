#pragma once
// The weights of one model as the CPU kernels read them. Immutable once packed; the source may then go.

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/channel_store.h"
#include "kernels/matrix.h"
#include "serve/cpu/head_screen.h"
#include "serve/cpu/weights.h"
#include "serve/expert_map.h"
#include "spec/config.h"

namespace outrider::serve {

struct CpuLayer {
  std::vector<float> attn_norm, ffn_norm;
  kernels::Matrix qkv;  // rows of q, k and v behind each other
  kernels::Matrix o;
  kernels::ChannelStore ffn;       // one expert when the model is dense
  kernels::Matrix router;          // with routers in the layers: logits of the experts from the FFN's input; else empty
  std::vector<int64_t> ffn_bytes;  // by set of experts
};

class CpuModel {
 public:
  // Tensors `layer_router.weight` [layers * experts, width] and `.bias`: the baseline of a router in every layer, which
  // chooses from what comes in. Nobody knows experts ahead then; to the scheduler the model is a dense one.
  // Matrices, the embedding and the head included, in `number`; norms and biases in fp32. Codes: E_TENSORS, E_SHAPE;
  // E_CONFIG a model that this code does not compute: biases in the FFN, a width that is no multiple of 32; E_EXPERTS.
  static base::Result<CpuModel> Pack(const spec::Config& config, const ExpertMap& experts, const WeightSource& source,
                                     kernels::Number number);

  const spec::Config& config() const { return config_; }
  int64_t experts() const { return experts_; }  // 0: dense
  bool layerwise() const { return layerwise_; }
  kernels::Number number() const { return number_; }
  std::span<const CpuLayer> layers() const { return layers_; }
  std::span<const float> norm() const { return norm_; }
  const kernels::Matrix& head() const { return head_; }
  const HeadScreen& head_screen() const { return head_screen_; }
  const kernels::Matrix& embedding() const { return config_.tied ? head_ : embedding_; }

  // Bytes of FFN weights of the channels that any of these experts has, summed over layers. A dense model has one set.
  // With routers in the layers, of all experts: that much may be read.
  int64_t FfnBytes(uint16_t experts) const {
    if (layerwise_) return ffn_bytes_.back();
    return ffn_bytes_[experts_ == 0 ? 1 : experts & (ffn_bytes_.size() - 1)];
  }
  // Bytes of all layers without their FFN channels, and of the head.
  int64_t LayerBytes() const { return layer_bytes_; }
  int64_t HeadBytes() const { return head_.bytes() + static_cast<int64_t>(norm_.size()) * 4; }

 private:
  CpuModel(const spec::Config& config, int64_t experts, kernels::Number number)
      : config_(config), experts_(experts), number_(number) {}
  void CountBytes();

  spec::Config config_;
  int64_t experts_;
  bool layerwise_ = false;
  kernels::Number number_;
  std::vector<CpuLayer> layers_;
  std::vector<float> norm_;
  kernels::Matrix head_, embedding_;
  HeadScreen head_screen_;
  std::vector<int64_t> ffn_bytes_;  // by set of experts
  int64_t layer_bytes_ = 0;
};

}  // namespace outrider::serve
