#include "moe/adapter_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "model/tensor_store.h"
#include "moe/tensor_file.h"

namespace outrider::moe {
namespace {

constexpr const char* kFormat = "1";
constexpr double kLargest = 127;  // of int8; -128 is not used
constexpr int kTop = 20;          // the largest |x| is brought to 2^19 to 2^20: row scales up to 2^13, far from the
                                  // subnormal halves for rows a hundred million times smaller

// The power of two that brings the largest |x| to between 1/2 and 1; 0 for zeros.
int Exponent(const at::Tensor& x) {
  int exponent = 0;
  std::frexp(x.abs().max().item<double>(), &exponent);
  return exponent;
}

// Rows of x as int8, each with a scale in half precision: x is about q * scale.
std::pair<at::Tensor, at::Tensor> ByRow(const at::Tensor& x) {
  const at::Tensor scale = (std::get<0>(x.abs().max(1)) / kLargest).to(at::kHalf);
  const at::Tensor divisor = scale.to(at::kFloat).unsqueeze(1);
  const at::Tensor q = at::where(divisor > 0, at::round(x / divisor), at::zeros_like(x));
  return {q.clamp(-kLargest, kLargest).to(at::kChar), scale};
}

// Powers of two move between a and b, and out of b into `exponent`, so that every scale is a normal half.
NamedTensors AsInt8(const Adapter& adapter, int& exponent) {
  std::vector<std::tuple<std::string, at::Tensor, at::Tensor>> balanced;
  std::optional<int> largest;  // none for an adapter that changes nothing
  for (const AdapterPair& pair : adapter.pairs()) {
    const at::Tensor a = pair.a.detach().to(at::kCPU), b = pair.b.detach().to(at::kCPU);
    const int lift = kTop - Exponent(a);
    balanced.emplace_back(pair.weight, a * std::ldexp(1.0, lift), b * std::ldexp(1.0, -lift));
    const at::Tensor& moved = std::get<2>(balanced.back());
    if (moved.any().item<bool>()) largest = std::max(largest.value_or(-1000), Exponent(moved) - kTop);
  }
  exponent = largest.value_or(0);
  NamedTensors out;
  for (const auto& [weight, a, b] : balanced) {
    const auto [qa, scale_a] = ByRow(a);
    const auto [qb, scale_b] = ByRow(b * std::ldexp(1.0, -exponent));
    out.insert(
        out.end(),
        {{weight + ".a", qa}, {weight + ".a.scale", scale_a}, {weight + ".b", qb}, {weight + ".b.scale", scale_b}});
  }
  return out;
}

class Reader {
 public:
  Reader(const std::string& path, TensorFile file) : path_(path), file_(std::move(file)) {
    for (const NamedTensor& t : file_.tensors) tensors_[t.name] = t.tensor;
  }

  tl::unexpected<base::Error> Bad(const std::string& what, const std::string& found,
                                  const std::string& expected) const {
    return base::Fail("E_ADAPTER", path_ + ": " + what + ": found " + found + ", expected " + expected);
  }

  base::Result<AdapterHeader> Header() const {
    const auto field = [&](const char* name) {
      const auto found = file_.metadata.find(name);
      return found == file_.metadata.end() ? std::string() : found->second;
    };
    AdapterHeader header{.rank = 0, .dtype = field("dtype"), .base_sha256 = field("base_sha256")};
    if (field("format") != kFormat) return Bad("format", "\"" + field("format") + "\"", kFormat);
    if (header.dtype != "bfloat16" && header.dtype != "int8")
      return Bad("dtype", "\"" + header.dtype + "\"", "bfloat16 or int8");
    const std::string rank = field("rank");
    const auto end = std::from_chars(rank.data(), rank.data() + rank.size(), header.rank).ptr;
    if (header.rank < 1 || end != rank.data() + rank.size()) return Bad("rank", "\"" + rank + "\"", "a number above 0");
    return header;
  }

  // Factor of all pairs.
  base::Result<double> Scale() const {
    const auto found = file_.metadata.find("scale");
    const std::string text = found == file_.metadata.end() ? "" : found->second;
    double scale = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), scale);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(scale))
      return Bad("scale", "\"" + text + "\"", "a finite number");
    return scale;
  }

  // One half of a pair, fp32; removes what it read. Undefined when the file has none.
  base::Result<at::Tensor> Take(const std::string& name, const std::vector<int64_t>& shape, bool narrow) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return at::Tensor();
    at::Tensor value = found->second;
    if (value.sizes() != at::IntArrayRef(shape))
      return Bad(name, "shape " + model::ShapeText(value.sizes()), model::ShapeText(shape));
    if (value.scalar_type() != (narrow ? at::kChar : at::kBFloat16))
      return Bad(name, "another dtype", narrow ? "I8" : "BF16");
    value = value.to(at::kFloat);
    tensors_.erase(found);
    if (narrow) {
      const auto scale = tensors_.find(name + ".scale");
      if (scale == tensors_.end() || scale->second.dim() != 1 || scale->second.size(0) != shape[0])
        return Bad(name + ".scale", "none of this shape", "[" + std::to_string(shape[0]) + "]");
      value = value * scale->second.to(at::kFloat).unsqueeze(1);
      tensors_.erase(scale);
    }
    if (!at::isfinite(value).all().item<bool>()) return Bad(name, "a value that is NaN or infinite", "finite numbers");
    return value;
  }

  const std::map<std::string, at::Tensor>& Rest() const { return tensors_; }

 private:
  std::string path_;
  TensorFile file_;
  std::map<std::string, at::Tensor> tensors_;
};

}  // namespace

base::Result<void> SaveAdapter(const std::string& path, const Adapter& adapter, const AdapterHeader& header) {
  const at::NoGradGuard no_grad;
  std::map<std::string, std::string> metadata = {{"format", kFormat},
                                                 {"rank", std::to_string(header.rank)},
                                                 {"dtype", header.dtype},
                                                 {"base_sha256", header.base_sha256},
                                                 {"scale", "1"}};
  NamedTensors tensors;
  if (header.dtype == "int8") {
    int exponent = 0;
    tensors = AsInt8(adapter, exponent);
    std::array<char, 32> text{};
    const auto end = std::to_chars(text.data(), text.data() + text.size(), std::ldexp(1.0, exponent)).ptr;
    metadata["scale"] = std::string(text.data(), end);
  } else {
    for (const AdapterPair& pair : adapter.pairs()) {
      tensors.push_back({pair.weight + ".a", pair.a.detach().to(at::kBFloat16)});
      tensors.push_back({pair.weight + ".b", pair.b.detach().to(at::kBFloat16)});
    }
  }
  return SaveTensors(path, tensors, metadata);
}

base::Result<std::pair<Adapter, AdapterHeader>> LoadAdapter(const std::string& path, const model::Config& config,
                                                            at::Device device) {
  const at::NoGradGuard no_grad;
  auto file = LoadTensors(path);
  if (!file) return tl::unexpected(file.error());
  Reader reader(path, *std::move(file));
  const auto header = reader.Header();
  if (!header) return tl::unexpected(header.error());
  const auto scale = reader.Scale();
  if (!scale) return tl::unexpected(scale.error());
  std::vector<AdapterPair> pairs;
  model::Parameters none;
  for (const model::NamedTensor& t : model::NamedTensors(config, none)) {
    if (!Adapter::Pairs(t)) continue;
    const bool narrow = header->dtype == "int8";
    auto a = reader.Take(t.name + ".a", {header->rank, t.shape[1]}, narrow);
    if (!a) return tl::unexpected(a.error());
    auto b = reader.Take(t.name + ".b", {t.shape[0], header->rank}, narrow);
    if (!b) return tl::unexpected(b.error());
    if (a->defined() != b->defined()) return reader.Bad(t.name, "one half of a pair", ".a and .b");
    if (a->defined()) pairs.push_back({t.name, a->to(device), (*b * *scale).to(device)});
  }
  if (!reader.Rest().empty())
    return reader.Bad(reader.Rest().begin()->first, "a tensor of no weight that the model has", "<weight>.a and .b");
  return std::pair(Adapter(std::move(pairs)), *header);
}

}  // namespace outrider::moe
