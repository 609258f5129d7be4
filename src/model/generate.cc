#include "model/generate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <string>

namespace outrider::model {
namespace {

base::Result<void> CheckPrompt(const Config& config, const std::vector<int64_t>& prompt) {
  const auto bad = [](const std::string& text) { return base::Fail("E_PROMPT", "prompt: " + text); };
  if (prompt.empty()) return bad("found no token, expected at least one");
  if (static_cast<int64_t>(prompt.size()) > config.max_positions) {
    return bad("found " + std::to_string(prompt.size()) + " tokens, expected at most " +
               std::to_string(config.max_positions));
  }
  for (int64_t id : prompt) {
    if (id < 0 || id >= config.vocab)
      return bad("found id " + std::to_string(id) + ", expected 0 to " + std::to_string(config.vocab - 1));
  }
  return {};
}

at::Tensor ToTensor(const std::vector<int64_t>& ids, at::Device device) {
  at::Tensor row = at::empty({1, static_cast<int64_t>(ids.size())}, at::TensorOptions().dtype(at::kLong));
  std::copy(ids.begin(), ids.end(), row.mutable_data_ptr<int64_t>());
  return row.to(device);
}

}  // namespace

base::Result<StopReason> Generate(const Config& config, const Parameters& parameters,
                                  const std::vector<int64_t>& prompt, const GenerateOptions& options,
                                  const std::function<bool(int64_t)>& on_id, FfnHook* hook) {
  if (auto checked = CheckPrompt(config, prompt); !checked) return tl::unexpected(checked.error());
  const at::NoGradGuard no_grad;
  const auto start = static_cast<int64_t>(prompt.size());
  const int64_t capacity = std::min(config.max_positions, start + std::max<int64_t>(options.new_tokens_max, 0));
  KvCache cache(config, 1, capacity, parameters.embed);
  std::vector<int64_t> pending = prompt;
  for (int64_t made = 0; made < options.new_tokens_max; ++made) {
    const at::Tensor ids = ToTensor(pending, parameters.embed.device());
    const at::Tensor last = HiddenStates(config, parameters, ids, cache, hook).select(1, -1);
    const at::Tensor logits = Logits(config, parameters, last).to(at::kFloat).to(at::kCPU).contiguous();
    const std::span<const float> row(logits.const_data_ptr<float>(), static_cast<size_t>(config.vocab));
    const int64_t id = sampling::PickToken(row, options.sampling, static_cast<uint64_t>(made));
    if (id < 0)
      return base::Fail("E_LOGITS", "token " + std::to_string(start + made) +
                                        " of the text: a logit is infinite or not a number, expected finite ones");
    if (!on_id(id)) return StopReason::kCallback;
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end())
      return StopReason::kEndId;
    pending = {id};
    if (cache.Length() == config.max_positions) return StopReason::kContextFull;
  }
  return StopReason::kLength;
}

}  // namespace outrider::model
