#include "serve/cpu/cpu_model.h"

#include <algorithm>
#include <string>
#include <utility>

namespace outrider::serve {
namespace {

using kernels::Matrix;
using kernels::Number;

base::Result<void> CheckConfig(const spec::Config& config) {
  if (config.mlp_bias)
    return base::Fail("E_CONFIG", "mlp_bias: found true, expected a model without biases in its FFN");
  if (config.hidden_size % kernels::kWidthMultiple != 0)
    return base::Fail("E_CONFIG", "hidden_size: found " + std::to_string(config.hidden_size) +
                                      ", expected a multiple of " + std::to_string(kernels::kWidthMultiple));
  return {};
}

// Matrices and vectors of one model by name; keeps the first error.
class Packer {
 public:
  Packer(const spec::Config& config, const ExpertMap& map, const WeightSource& source, Number number)
      : config_(config), map_(map), source_(source), number_(number) {}

  struct Part {
    std::string name;  // without ".weight"
    int64_t rows;
  };

  // The parts' rows behind each other.
  Matrix Stack(const std::vector<Part>& parts, int64_t columns, bool biased) {
    std::vector<WeightRows> found;
    std::vector<float> bias;
    int64_t rows = 0;
    for (const Part& part : parts) {
      found.push_back(Rows(part.name + ".weight", part.rows, columns));
      rows += part.rows;
      if (!biased) continue;
      const std::vector<float> values = Vector(part.name + ".bias", part.rows);
      bias.insert(bias.end(), values.begin(), values.end());
    }
    if (failed()) return {};
    const auto read = [&](int64_t row, float* to) {
      size_t at = 0;
      for (; row >= found[at].rows; ++at) row -= found[at].rows;
      found[at].Read(row, to);
    };
    return Matrix::Pack(rows, columns, number_, read, bias);
  }

  std::vector<float> Vector(const std::string& name, int64_t size) {
    auto found = FindVector(source_, name, size);
    if (!found) Keep(found.error());
    return found ? *std::move(found) : std::vector<float>();
  }

  base::Result<kernels::ChannelStore> Ffn(int64_t layer, const std::string& prefix) {
    const int64_t width = config_.hidden_size, all = config_.ffn;
    const WeightRows gate = Rows(prefix + "gate_proj.weight", all, width);
    const WeightRows up = Rows(prefix + "up_proj.weight", all, width);
    const WeightRows down = Rows(prefix + "down_proj.weight", width, all);
    if (failed()) return tl::unexpected(error_);
    const auto live = LiveChannelsOf(config_, map_, layer);
    if (!live) return tl::unexpected(live.error());
    const std::vector<int32_t>& channels = live->channels;
    std::vector<float> row(static_cast<size_t>(all));
    const kernels::ChannelSource in_order{
        static_cast<int64_t>(channels.size()), width,
        [&](int64_t c, float* to) { gate.Read(channels[static_cast<size_t>(c)], to); },
        [&](int64_t c, float* to) { up.Read(channels[static_cast<size_t>(c)], to); },
        [&](int64_t output, float* to) {
          down.Read(output, row.data());
          for (const int32_t c : channels) *to++ = row[static_cast<size_t>(c)];
        }};
    return kernels::ChannelStore::Pack(in_order, number_, live->signatures, std::max<int64_t>(map_.experts, 1));
  }

  // Rows of one layer, in fp32 as the router outside is.
  Matrix LayerRouter(int64_t layer, int64_t experts) {
    const WeightRows all = Rows("layer_router.weight", config_.layers * experts, config_.hidden_size);
    const std::vector<float> bias = Vector("layer_router.bias", config_.layers * experts);
    if (failed()) return {};
    const auto read = [&](int64_t row, float* to) { all.Read(layer * experts + row, to); };
    return Matrix::Pack(experts, config_.hidden_size, Number::kF32, read,
                        std::span(bias).subspan(static_cast<size_t>(layer * experts), static_cast<size_t>(experts)));
  }

  bool failed() const { return !error_.code.empty(); }
  const base::Error& error() const { return error_; }

 private:
  void Keep(const base::Error& error) {
    if (!failed()) error_ = error;
  }

  WeightRows Rows(const std::string& name, int64_t rows, int64_t columns) {
    const auto found = FindMatrix(source_, name, rows, columns);
    if (!found) Keep(found.error());
    return found.value_or(WeightRows{});
  }

  const spec::Config& config_;
  const ExpertMap& map_;
  const WeightSource& source_;
  Number number_;
  base::Error error_;
};

}  // namespace

base::Result<CpuModel> CpuModel::Pack(const spec::Config& config, const ExpertMap& experts, const WeightSource& source,
                                      Number number) {
  if (auto ok = CheckConfig(config); !ok) return tl::unexpected(ok.error());
  if (auto ok = CheckExperts(config, experts); !ok) return tl::unexpected(ok.error());
  CpuModel model(config, experts.experts > 1 ? experts.experts : 0, number);
  Packer packer(config, experts, source, number);
  model.layerwise_ = model.experts_ > 0 && source.contains("layer_router.weight");
  const int64_t width = config.hidden_size, queries = config.heads * config.head_dim;
  const int64_t keys = config.kv_heads * config.head_dim;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".", attn = prefix + "self_attn.";
    auto attn_norm = packer.Vector(prefix + "input_layernorm.weight", width);
    auto ffn_norm = packer.Vector(prefix + "post_attention_layernorm.weight", width);
    Matrix qkv = packer.Stack({{attn + "q_proj", queries}, {attn + "k_proj", keys}, {attn + "v_proj", keys}}, width,
                              config.qkv_bias);
    Matrix o = packer.Stack({{attn + "o_proj", width}}, queries, config.o_bias);
    auto ffn = packer.Ffn(layer, prefix + "mlp.");
    Matrix router = model.layerwise_ ? packer.LayerRouter(layer, model.experts_) : Matrix();
    if (packer.failed()) return tl::unexpected(packer.error());
    if (!ffn) return tl::unexpected(ffn.error());
    model.layers_.push_back({std::move(attn_norm),
                             std::move(ffn_norm),
                             std::move(qkv),
                             std::move(o),
                             *std::move(ffn),
                             std::move(router),
                             {}});
  }
  model.norm_ = packer.Vector("model.norm.weight", width);
  model.head_ = packer.Stack({{config.tied ? "model.embed_tokens" : "lm_head", config.vocab}}, width, false);
  if (!config.tied) model.embedding_ = packer.Stack({{"model.embed_tokens", config.vocab}}, width, false);
  if (packer.failed()) return tl::unexpected(packer.error());
  model.head_screen_ = HeadScreen::Of(model.head_);
  model.CountBytes();
  return model;
}

void CpuModel::CountBytes() {
  ffn_bytes_.resize(size_t{1} << std::max<int64_t>(experts_, 1), 0);
  for (CpuLayer& layer : layers_) {
    layer_bytes_ += layer.qkv.bytes() + layer.o.bytes() + layer.router.bytes() +
                    static_cast<int64_t>(layer.attn_norm.size() + layer.ffn_norm.size()) * 4;
    std::vector<int64_t> by_signature(ffn_bytes_.size(), 0);
    for (const kernels::Signature s : layer.ffn.signatures()) by_signature[s] += layer.ffn.record_bytes();
    layer.ffn_bytes = BytesOfSets(std::move(by_signature));
    for (size_t set = 0; set < ffn_bytes_.size(); ++set) ffn_bytes_[set] += layer.ffn_bytes[set];
  }
}

}  // namespace outrider::serve
