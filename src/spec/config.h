#pragma once
// The shape of a dense Llama-family model, read from the config.json of a Hugging Face model folder.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace outrider::spec {

// How rotary frequencies are stretched for long contexts; the two forms that need no knowledge of the input.
struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLinear, kLlama3 };
  Kind kind = Kind::kNone;
  double factor = 1;
  double low_frequency_factor = 1, high_frequency_factor = 4;  // llama3
  int64_t original_positions = 0;                              // llama3
  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

struct Config {
  std::string model_type;   // llama | qwen2 | mistral
  int64_t hidden_size = 0;  // d
  int64_t layers = 0;       // L
  int64_t heads = 0;        // of the queries
  int64_t kv_heads = 0;     // divides heads
  int64_t head_dim = 0;     // even
  int64_t ffn = 0;          // D: channels per layer
  int64_t vocab = 0;        // V: rows of the embedding
  double rope_theta = 10'000;
  RopeScaling rope_scaling;
  double rms_eps = 1e-6;
  int64_t max_positions = 0;  // tokens
  bool tied = false;          // the head is the embedding
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  std::vector<int64_t> windows;    // per layer: keys a token sees, itself included; 0: all before it
  std::vector<int64_t> end_ids;    // any of these ends a text; may be empty
  std::vector<int64_t> begin_ids;  // at most one

  int64_t KvGroup() const { return heads / kv_heads; }
  friend bool operator==(const Config&, const Config&) = default;
};

// `text`: config.json; `file` names it in messages. Every field that changes what the model computes is read, or
// refused where this code does not do it. Code: E_CONFIG.
base::Result<Config> ParseConfig(std::string_view text, const std::string& file);
// FOLDER/config.json. Codes: E_CONFIG, E_READ.
base::Result<Config> LoadConfig(const std::string& folder);

// config.json of the same model, as every version of transformers reads it. `dtype`: of the stored weights
// ("bfloat16").
std::string ToJson(const Config& config, const std::string& dtype);

}  // namespace outrider::spec
