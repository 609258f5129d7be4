#include "model/sample_texts.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "model/batch_decoder.h"

namespace outrider::model {
namespace {

constexpr int64_t kDeviceWindow = 16;

base::Result<void> Check(const Config& config, const TextPlan& plan) {
  const auto bad = [](const char* code, const std::string& text) { return base::Fail(code, text); };
  int64_t longest = config.max_positions;
  for (const int64_t window : config.windows) longest = window > 0 ? std::min(longest, window) : longest;
  if (plan.length < 2 || plan.length > longest) {
    return bad("E_OPTION", "length: found " + std::to_string(plan.length) + " tokens, expected 2 to " +
                               std::to_string(longest) + ", the model's positions or sliding window");
  }
  if (plan.prompts.empty() || plan.turns.empty()) return bad("E_PROMPT", "prompts, turns: found none");
  const auto check_ids = [&](const std::vector<int64_t>& ids, const char* what) -> base::Result<void> {
    for (const int64_t id : ids) {
      if (id >= 0 && id < config.vocab) continue;
      return bad("E_PROMPT", std::string(what) + ": found id " + std::to_string(id) + ", expected 0 to " +
                                 std::to_string(config.vocab - 1));
    }
    return {};
  };
  for (const auto& prompt : plan.prompts) {
    if (prompt.empty() || static_cast<int64_t>(prompt.size()) >= plan.length) {
      return bad("E_PROMPT", "prompt: found " + std::to_string(prompt.size()) + " tokens, expected 1 to " +
                                 std::to_string(plan.length - 1));
    }
    if (auto done = check_ids(prompt, "prompt"); !done) return done;
  }
  for (const Turn& turn : plan.turns) {
    if (auto done = check_ids(turn.tail, "tail"); !done) return done;
  }
  return {};
}

template <class T>
at::Tensor OnDevice(const std::vector<T>& values, std::vector<int64_t> shape, at::ScalarType dtype, at::Device device) {
  return at::from_blob(const_cast<T*>(values.data()), shape, at::TensorOptions().dtype(dtype)).to(device, false, true);
}

// Owns what the steps of one run share.
class Writer {
 public:
  Writer(const Config& config, const Parameters& parameters, const Sampling& sampling, TextRows& rows)
      : decoder_(config, parameters, rows.rows(), rows.slots()),
        sampling_(sampling),
        rows_(rows),
        options_(parameters.embed.options()) {}

  // Runs the steps of one window and hands their ids to the rows.
  std::vector<SampledText> Advance() {
    const TextRows::Inputs in = rows_.Next();
    const int64_t count = rows_.rows(), steps = rows_.window(), slots = rows_.slots();
    const at::Device device = options_.device();
    at::Tensor ids = OnDevice(in.ids, {count}, at::kLong, device);
    at::Tensor positions = OnDevice(in.positions, {count}, at::kLong, device);
    const at::Tensor forced = OnDevice(in.forced, {steps, count}, at::kLong, device);
    const at::Tensor uniform = OnDevice(in.uniform, {steps, count}, at::kFloat, device);
    at::Tensor temperatures = OnDevice(in.temperatures, {count}, at::kFloat, device);
    temperatures = at::where(temperatures > 0, temperatures, sampling_.temperature);
    const at::Tensor visible = OnDevice(in.seen, {count, slots}, at::kByte, device);
    const at::Tensor seen =
        at::zeros({count, slots}, options_).masked_fill_(visible == 0, -std::numeric_limits<double>::infinity());
    // Kernels read masks in units of 16 slots.
    const int64_t used = std::min((in.used_slots + 15) / 16 * 16, slots);
    std::vector<at::Tensor> made;
    for (int64_t w = 0; w < steps; ++w) {
      const int64_t slot = (in.first_slot + w) % slots;
      seen.select(1, slot).fill_(0);
      const at::Tensor logits = decoder_.Step(ids, positions, slot, seen, used);
      const at::Tensor drawn = DrawTokens(logits, sampling_, uniform[w], temperatures);
      ids = at::where(forced[w] >= 0, forced[w], drawn);
      positions.add_(1);
      made.push_back(ids);
    }
    const at::Tensor all = at::stack(made).to(at::kCPU).contiguous();
    return rows_.Take({all.const_data_ptr<int64_t>(), static_cast<size_t>(all.numel())});
  }

 private:
  BatchDecoder decoder_;
  const Sampling& sampling_;
  TextRows& rows_;
  at::TensorOptions options_;  // dtype and device of the weights
};

}  // namespace

at::Tensor DrawTokens(const at::Tensor& logits, const Sampling& sampling, const at::Tensor& uniform,
                      const at::Tensor& temperatures) {
  if (sampling.temperature <= 0) return logits.argmax(-1);
  const at::Tensor wide = logits.to(at::kFloat);
  at::Tensor shares =
      at::softmax(temperatures.defined() ? wide / temperatures.unsqueeze(1) : wide / sampling.temperature, -1);
  at::Tensor ids;  // of the shares, the most likely first; undefined: in the order of the vocabulary
  if (sampling.top_k > 0 && sampling.top_k < logits.size(-1)) {
    std::tie(shares, ids) = shares.topk(sampling.top_k, -1, /*largest=*/true, /*sorted=*/true);
  } else if (sampling.top_p < 1) {
    std::tie(shares, ids) = shares.sort(-1, /*descending=*/true);
  }
  const at::Tensor reached = shares.cumsum(-1);
  at::Tensor last = at::full({logits.size(0), 1}, shares.size(-1) - 1, uniform.options().dtype(at::kLong));
  if (sampling.top_p < 1) {
    // A share is in when those before it fall short of top_p; the first always is.
    const at::Tensor in = (reached - shares) < reached.slice(-1, -1) * sampling.top_p;
    last = (in.sum(-1, /*keepdim=*/true) - 1).clamp_min_(0);
  }
  const at::Tensor target = uniform.unsqueeze(1) * reached.gather(-1, last);
  const at::Tensor place = at::minimum(at::searchsorted(reached, target, /*out_int32=*/false, /*right=*/true), last);
  return (ids.defined() ? ids.gather(-1, place) : place).squeeze(-1);
}

base::Result<void> SampleTexts(const Config& config, const Parameters& parameters, const TextPlan& plan,
                               const Sampling& sampling, const SamplingRun& run,
                               const std::function<bool(const SampledText&)>& on_text) {
  if (auto checked = Check(config, plan); !checked) return checked;
  if (plan.texts == 0) return {};
  const at::NoGradGuard no_grad;
  const int64_t window = run.window > 0 ? run.window : parameters.embed.is_cpu() ? 1 : kDeviceWindow;
  TextRows rows(plan, std::max<int64_t>(run.rows, 1), window);
  Writer writer(config, parameters, sampling, rows);
  std::map<int64_t, SampledText> waiting;  // texts that were over before an earlier one
  int64_t next = 0;
  while (!rows.Idle()) {
    for (SampledText& text : writer.Advance()) waiting.emplace(text.number, std::move(text));
    for (auto first = waiting.begin(); first != waiting.end() && first->first == next; first = waiting.begin()) {
      if (!on_text(first->second)) return {};
      waiting.erase(first);
      ++next;
    }
  }
  return {};
}

}  // namespace outrider::model
