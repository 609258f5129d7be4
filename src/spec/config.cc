#include "spec/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include <nlohmann/json.hpp>

#include "base/check.h"
#include "files/mapped_file.h"
#include "files/shallow_json.h"

namespace outrider::spec {
namespace {

using nlohmann::json;

constexpr const char* kCode = "E_CONFIG";
constexpr int64_t kSizeMax = int64_t{1} << 32;  // no field of a real model is larger
constexpr int64_t kLayersMax = 4096;            // something is allocated for each

struct Family {
  std::string_view model_type, architecture;
};
constexpr std::array<Family, 3> kFamilies = {
    {{"llama", "LlamaForCausalLM"}, {"qwen2", "Qwen2ForCausalLM"}, {"mistral", "MistralForCausalLM"}}};

// Fields that other models of these families carry, with the only value that this code computes.
struct Fixed {
  const char* field;
  json value;
};
const std::vector<Fixed>& FixedFields() {
  static const auto* fields = new std::vector<Fixed>{{"hidden_act", "silu"},
                                                     {"partial_rotary_factor", 1.0},
                                                     {"rope_interleaved", false},
                                                     {"is_encoder_decoder", false},
                                                     {"add_cross_attention", false}};
  return *fields;
}
// Their presence says that the model computes something else.
constexpr std::array<const char*, 8> kForeignFields = {
    "num_local_experts",   "num_experts", "n_routed_experts",     "moe_intermediate_size",
    "quantization_config", "auto_map",    "attention_multiplier", "final_logit_softcapping"};

// Reads fields one by one and keeps the first complaint; a message names file, field, what was found and expected.
class Reader {
 public:
  Reader(const json& root, std::string place) : root_(root), place_(std::move(place)) {}

  // Null counts as absent, as in transformers.
  const json* Find(const char* field) const {
    const auto it = root_.find(field);
    return it == root_.end() || it->is_null() ? nullptr : &*it;
  }
  void Complain(const std::string& field, const std::string& found, const std::string& expected) {
    if (complaint_.empty()) complaint_ = place_ + ": " + field + ": found " + found + ", expected " + expected;
  }
  int64_t Size(const char* field, std::optional<int64_t> absent = std::nullopt, int64_t most = kSizeMax) {
    const json* value = Find(field);
    if (value == nullptr && absent) return *absent;
    if (value != nullptr && value->is_number_integer()) {
      const auto number = value->get<int64_t>();
      if (number >= 1 && number <= most) return number;
    }
    Complain(field, Text(value), "a whole number from 1 to " + std::to_string(most));
    return 1;
  }
  double Positive(const char* field, std::optional<double> absent = std::nullopt) {
    const json* value = Find(field);
    if (value == nullptr && absent) return *absent;
    if (value != nullptr && value->is_number() && value->get<double>() > 0 && std::isfinite(value->get<double>())) {
      return value->get<double>();
    }
    Complain(field, Text(value), "a positive number");
    return 1;
  }
  bool Flag(const char* field, bool absent) {
    const json* value = Find(field);
    if (value == nullptr) return absent;
    if (value->is_boolean()) return value->get<bool>();
    Complain(field, Text(value), "true or false");
    return absent;
  }
  std::vector<int64_t> Ids(const char* field) {
    const json* value = Find(field);
    std::vector<int64_t> ids;
    if (value == nullptr) return ids;
    for (const json& id : value->is_array() ? *value : json::array({*value})) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0) {
        Complain(field, Text(value), "a token id, or a list of them");
        return {};
      }
      ids.push_back(id.get<int64_t>());
    }
    return ids;
  }
  static std::string Text(const json* value) { return value == nullptr ? "nothing" : value->dump(); }
  const std::string& Complaint() const { return complaint_; }
  const std::string& Place() const { return place_; }
  void Adopt(const Reader& inner) {
    if (complaint_.empty()) complaint_ = inner.complaint_;
  }

 private:
  const json& root_;
  std::string place_;
  std::string complaint_;
};

void ReadFamily(Reader& reader, Config& config) {
  const json* type = reader.Find("model_type");
  const Family* family = nullptr;
  for (const auto& known : kFamilies) {
    if (type != nullptr && *type == known.model_type) family = &known;
  }
  if (family == nullptr) return reader.Complain("model_type", Reader::Text(type), "llama, qwen2 or mistral");
  config.model_type = family->model_type;
  const json* architectures = reader.Find("architectures");
  if (architectures != nullptr && *architectures != json::array({family->architecture})) {
    reader.Complain("architectures", architectures->dump(), "[\"" + std::string(family->architecture) + "\"]");
  }
  for (const char* field : kForeignFields) {
    if (const json* value = reader.Find(field))
      reader.Complain(field, value->dump(), "a dense model without this field");
  }
  for (const auto& fixed : FixedFields()) {
    const json* value = reader.Find(fixed.field);
    if (value != nullptr && *value != fixed.value) reader.Complain(fixed.field, value->dump(), fixed.value.dump());
  }
}

void ReadSizes(Reader& reader, Config& config) {
  config.hidden_size = reader.Size("hidden_size");
  config.layers = reader.Size("num_hidden_layers", std::nullopt, kLayersMax);
  config.heads = reader.Size("num_attention_heads");
  config.kv_heads = reader.Size("num_key_value_heads", config.heads);
  config.head_dim = reader.Size("head_dim", std::max<int64_t>(1, config.hidden_size / config.heads));
  config.ffn = reader.Size("intermediate_size");
  config.vocab = reader.Size("vocab_size");
  config.max_positions = reader.Size("max_position_embeddings");
  config.rms_eps = reader.Positive("rms_norm_eps", 1e-6);
  config.tied = reader.Flag("tie_word_embeddings", false);
  config.end_ids = reader.Ids("eos_token_id");
  config.begin_ids = reader.Ids("bos_token_id");
  if (config.heads % config.kv_heads != 0) {
    reader.Complain("num_key_value_heads", std::to_string(config.kv_heads),
                    "a divisor of num_attention_heads = " + std::to_string(config.heads));
  }
  if (config.head_dim % 2 != 0) reader.Complain("head_dim", std::to_string(config.head_dim), "an even number");
  if (reader.Find("head_dim") == nullptr && config.hidden_size % config.heads != 0) {
    reader.Complain("hidden_size", std::to_string(config.hidden_size),
                    "a multiple of num_attention_heads = " + std::to_string(config.heads));
  }
}

void ReadBiases(Reader& reader, Config& config) {
  if (config.model_type == "qwen2") {
    config.qkv_bias = true;  // no field says so: the architecture has them
    return;
  }
  const bool attention = reader.Flag("attention_bias", false);
  config.mlp_bias = reader.Flag("mlp_bias", false);
  if (config.model_type == "mistral") {
    if (attention) reader.Complain("attention_bias", "true", "false for mistral");
    if (config.mlp_bias) reader.Complain("mlp_bias", "true", "false for mistral");
  }
  config.qkv_bias = config.o_bias = attention;
}

RopeScaling ReadScaling(Reader& inner, const std::string& type) {
  RopeScaling scaling;
  scaling.factor = inner.Positive("factor");
  scaling.kind = type == "linear" ? RopeScaling::Kind::kLinear : RopeScaling::Kind::kLlama3;
  if (scaling.kind == RopeScaling::Kind::kLinear) return scaling;
  scaling.low_frequency_factor = inner.Positive("low_freq_factor");
  scaling.high_frequency_factor = inner.Positive("high_freq_factor");
  scaling.original_positions = inner.Size("original_max_position_embeddings");
  if (scaling.high_frequency_factor <= scaling.low_frequency_factor) {
    inner.Complain("high_freq_factor", Reader::Text(inner.Find("high_freq_factor")), "more than low_freq_factor");
  }
  return scaling;
}

// transformers 5 has all in rope_parameters; before that rope_theta stood alone and rope_scaling beside it.
void ReadRope(Reader& reader, Config& config) {
  const char* name = reader.Find("rope_parameters") != nullptr ? "rope_parameters" : "rope_scaling";
  const json* parameters = reader.Find(name);
  config.rope_theta = reader.Positive("rope_theta", 10'000);
  if (parameters == nullptr) return;
  if (!parameters->is_object()) return reader.Complain(name, parameters->dump(), "an object");
  Reader inner(*parameters, reader.Place() + ": " + name);
  config.rope_theta = inner.Positive("rope_theta", config.rope_theta);
  if (inner.Positive("partial_rotary_factor", 1.0) != 1.0) {
    inner.Complain("partial_rotary_factor", Reader::Text(inner.Find("partial_rotary_factor")), "1");
  }
  const json* type = inner.Find(inner.Find("rope_type") != nullptr ? "rope_type" : "type");
  if (type != nullptr && (*type == "linear" || *type == "llama3")) {
    config.rope_scaling = ReadScaling(inner, type->get<std::string>());
  } else if (type != nullptr && *type != "default") {
    inner.Complain("rope_type", type->dump(), "default, linear or llama3");
  }
  reader.Adopt(inner);
}

// Mistral: one window for all layers. Qwen2: the layers that layer_types names, or all from max_window_layers on.
void ReadWindows(Reader& reader, Config& config) {
  config.windows.assign(static_cast<size_t>(config.layers), 0);
  const bool qwen = config.model_type == "qwen2";
  const json* types = reader.Find("layer_types");
  if (config.model_type == "llama" || (qwen && !reader.Flag("use_sliding_window", false)) ||
      reader.Find("sliding_window") == nullptr) {
    if (types != nullptr && *types != json(static_cast<size_t>(config.layers), "full_attention")) {
      reader.Complain("layer_types", types->dump(), "full_attention for each layer of a model without a window");
    }
    return;
  }
  const int64_t window = reader.Size("sliding_window");
  const int64_t first = qwen ? reader.Size("max_window_layers", 28) : 0;
  for (int64_t layer = first; layer < config.layers; ++layer) config.windows[layer] = window;
  if (types == nullptr || !qwen) return;
  if (!types->is_array() || types->size() != config.windows.size()) {
    return reader.Complain("layer_types", types->dump(), "a list of " + std::to_string(config.layers) + " names");
  }
  for (size_t layer = 0; layer < types->size(); ++layer) {
    const json& type = (*types)[layer];
    if (type != "full_attention" && type != "sliding_attention") {
      return reader.Complain("layer_types", type.dump(), "full_attention or sliding_attention");
    }
    config.windows[layer] = type == "sliding_attention" ? window : 0;
  }
}

void CheckIds(Reader& reader, const char* field, const std::vector<int64_t>& ids, int64_t vocab) {
  for (int64_t id : ids) {
    if (id >= vocab) reader.Complain(field, std::to_string(id), "an id below vocab_size = " + std::to_string(vocab));
  }
}

json RopeJson(const Config& config) {
  const RopeScaling& scaling = config.rope_scaling;
  switch (scaling.kind) {
    case RopeScaling::Kind::kNone:
      return nullptr;
    case RopeScaling::Kind::kLinear:
      return {{"rope_type", "linear"}, {"factor", scaling.factor}};
    case RopeScaling::Kind::kLlama3:
      break;
  }
  return {{"rope_type", "llama3"},
          {"factor", scaling.factor},
          {"low_freq_factor", scaling.low_frequency_factor},
          {"high_freq_factor", scaling.high_frequency_factor},
          {"original_max_position_embeddings", scaling.original_positions}};
}

json IdsJson(const std::vector<int64_t>& ids) {
  return ids.empty() ? json() : ids.size() == 1 ? json(ids[0]) : json(ids);
}

}  // namespace

base::Result<Config> ParseConfig(std::string_view text, const std::string& file) {
  const json root = files::ParseShallowJson(text);
  if (!root.is_object()) return base::Fail(kCode, file + ": found no JSON object, expected the config of a model");
  Reader reader(root, file);
  Config config;
  ReadFamily(reader, config);
  if (reader.Complaint().empty()) ReadSizes(reader, config);
  if (reader.Complaint().empty()) {
    ReadBiases(reader, config);
    ReadRope(reader, config);
    ReadWindows(reader, config);
    CheckIds(reader, "eos_token_id", config.end_ids, config.vocab);
    CheckIds(reader, "bos_token_id", config.begin_ids, config.vocab);
  }
  if (!reader.Complaint().empty()) return base::Fail(kCode, reader.Complaint());
  return config;
}

base::Result<Config> LoadConfig(const std::string& folder) {
  const auto file = files::MappedFile::Open(folder + "/config.json");
  if (!file) return tl::unexpected(file.error());
  return ParseConfig(file->Text(), file->Path());
}

std::string ToJson(const Config& config, const std::string& dtype) {
  const auto family = std::find_if(kFamilies.begin(), kFamilies.end(),
                                   [&](const Family& known) { return known.model_type == config.model_type; });
  OUTRIDER_CHECK(family != kFamilies.end(), "model type ", config.model_type);
  json root = {{"model_type", config.model_type},
               {"architectures", {family->architecture}},
               {"hidden_act", "silu"},
               {"hidden_size", config.hidden_size},
               {"num_hidden_layers", config.layers},
               {"num_attention_heads", config.heads},
               {"num_key_value_heads", config.kv_heads},
               {"head_dim", config.head_dim},
               {"intermediate_size", config.ffn},
               {"vocab_size", config.vocab},
               {"rope_theta", config.rope_theta},
               {"rope_scaling", RopeJson(config)},
               {"rms_norm_eps", config.rms_eps},
               {"max_position_embeddings", config.max_positions},
               {"tie_word_embeddings", config.tied},
               {"eos_token_id", IdsJson(config.end_ids)},
               {"bos_token_id", IdsJson(config.begin_ids)},
               {"torch_dtype", dtype}};
  if (config.model_type == "llama") root.update({{"attention_bias", config.o_bias}, {"mlp_bias", config.mlp_bias}});
  const auto window = std::find_if(config.windows.begin(), config.windows.end(), [](int64_t size) { return size > 0; });
  if (window != config.windows.end()) root["sliding_window"] = *window;
  if (config.model_type == "mistral" && window == config.windows.end()) root["sliding_window"] = nullptr;
  if (config.model_type == "qwen2") {
    root["use_sliding_window"] = window != config.windows.end();
    for (int64_t size : config.windows)
      root["layer_types"].push_back(size > 0 ? "sliding_attention" : "full_attention");
  }
  return root.dump(2) + "\n";
}

}  // namespace outrider::spec
