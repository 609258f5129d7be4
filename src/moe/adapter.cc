#include "moe/adapter.h"

#include <cmath>
#include <map>

#include <ATen/Functions.h>

#include "moe/uniform.h"

namespace outrider::moe {

bool Adapter::Pairs(const model::NamedTensor& t) { return t.shape.size() == 2 && t.name.starts_with("model.layers."); }

Adapter Adapter::Make(const model::Config& config, const model::Parameters& parameters, const AdapterForm& form,
                      uint64_t seed) {
  Adapter adapter;
  model::Parameters view = parameters;
  for (const model::NamedTensor& t : model::NamedTensors(config, view)) {
    if (!Pairs(t) || (form.ffn_only && t.name.find(".mlp.") == std::string::npos)) continue;
    const int64_t out = t.shape[0], in = t.shape[1];
    const at::Device device = t.tensor->device();
    const double bound = 1 / std::sqrt(static_cast<double>(in));
    const at::Tensor a =
        UniformTensor({form.rank, in}, bound, seed, Use::kAdapterInit, static_cast<uint32_t>(adapter.pairs_.size()));
    adapter.pairs_.push_back(
        {t.name, a.to(device), at::zeros({out, form.rank}, at::TensorOptions(device).dtype(at::kFloat))});
  }
  return adapter;
}

NamedTensors Adapter::Named() const {
  NamedTensors named;
  for (const AdapterPair& pair : pairs_) {
    named.push_back({"adapter." + pair.weight + ".a", pair.a});
    named.push_back({"adapter." + pair.weight + ".b", pair.b});
  }
  return named;
}

model::Parameters Adapter::Apply(const model::Config& config, const model::Parameters& parameters,
                                 at::ScalarType dtype) const {
  std::map<std::string, const AdapterPair*> by_name;
  for (const AdapterPair& pair : pairs_) by_name[pair.weight] = &pair;
  model::Parameters out = parameters;
  for (const model::NamedTensor& t : model::NamedTensors(config, out)) {
    const auto found = by_name.find(t.name);
    if (found == by_name.end()) {
      *t.tensor = t.tensor->to(dtype);
    } else {
      *t.tensor = at::addmm(t.tensor->to(at::kFloat), found->second->b, found->second->a).to(dtype);
    }
  }
  if (config.tied) out.head = out.embed;
  return out;
}

}  // namespace outrider::moe
