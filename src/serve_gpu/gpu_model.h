#pragma once
// The weights of one model as the GPU pass reads them, on one device. Immutable once packed.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "model/parameters.h"
#include "serve/expert_map.h"

namespace outrider::serve_gpu {

struct GpuLayer {
  at::Tensor attn_norm, qkv, qkv_bias, o, o_bias;  // qkv: rows of q, k and v behind each other; biases may be undefined
  at::Tensor ffn_norm;
  at::Tensor records;        // [channels, 3, width]: gate row, up row, down column; in DealtOrder (deal.h)
  at::Tensor signatures;     // int16 [channels]; bit e: expert e has the channel
  at::Tensor lists;          // int32: channels of expert 0, then of expert 1, ...
  at::Tensor list_at;        // int32 [experts + 1]: expert e has those from list_at[e] to list_at[e + 1]
  int64_t active_max = 0;    // channels of the largest expert
  at::Tensor gate_up, down;  // [2 channels, width], [width, channels]; see AddLibraryFfn
};

class GpuModel {
 public:
  // `parameters` on any device; what is packed lies on `device` in `dtype`. Codes: E_EXPERTS a map of other sizes,
  // E_CONFIG biases in the FFN.
  static base::Result<GpuModel> Pack(const spec::Config& config, const serve::ExpertMap& experts,
                                     const model::Parameters& parameters, at::Device device, at::ScalarType dtype);

  const spec::Config& config() const { return config_; }
  int64_t experts() const { return experts_; }  // 0: dense
  at::Device device() const { return embed_.device(); }
  at::ScalarType dtype() const { return embed_.scalar_type(); }
  const at::Tensor& embed() const { return embed_; }
  const at::Tensor& norm() const { return norm_; }
  const at::Tensor& head() const { return head_; }
  const std::vector<GpuLayer>& layers() const { return layers_; }

  // A second copy of a dense model's FFN, for library products. E_CONFIG: it has experts.
  base::Result<void> AddLibraryFfn();

  int64_t FfnBytes(uint16_t experts) const;
  int64_t LayerBytes() const { return layer_bytes_; }
  int64_t HeadBytes() const { return static_cast<int64_t>(head_.nbytes() + norm_.nbytes()); }

 private:
  GpuModel(const spec::Config& config, int64_t experts) : config_(config), experts_(experts) {}
  void CountBytes(const std::vector<std::vector<kernels::Signature>>& signatures);

  spec::Config config_;
  int64_t experts_ = 0;
  at::Tensor embed_, norm_, head_;
  std::vector<GpuLayer> layers_;
  int64_t layer_bytes_ = 0;
  std::vector<int64_t> ffn_bytes_;  // per set of experts
};

}  // namespace outrider::serve_gpu
