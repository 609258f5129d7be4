#pragma once
// Passes over planned tokens in bf16 on a GPU, everything resident; on any device through the reference form. A pass of
// many tokens runs as groups of up to kRowsMax, one after another. One thread calls.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "serve/cpu/pass_input.h"
#include "serve/executor.h"
#include "serve_gpu/device.h"
#include "serve_gpu/gpu_model.h"

namespace outrider::serve_gpu {

struct PassForm {
  // Library products have kRowsMax rows whatever the number of tokens, so that a token's bits do not depend on it.
  bool exact = true;
  bool reference = false;  // public operators where kernels would run
};

// Tokens of a Run that one graph runs.
struct Group {
  int64_t first = 0, count = 0;                // tokens of the Run
  int64_t wanted_first = 0, wanted_count = 0;  // rows of the group from the first to the last whose logits are wanted
};

class GpuExecutor : public serve::Executor {
 public:
  // Prepares every graph. Codes: E_LIMITS, E_CUDA. Throws c10::Error without memory.
  static base::Result<std::unique_ptr<GpuExecutor>> Make(GpuModel model, const serve::PassLimits& limits,
                                                         const PassForm& form);

  const serve::ModelShape& shape() const override { return shape_; }
  int64_t FfnBytes(uint16_t experts) const override { return model_.FfnBytes(experts); }
  int64_t FixedBytes() const override { return model_.LayerBytes() + model_.HeadBytes(); }
  // Codes: E_SHAPE, E_EXPERTS, and those of PassTokens::Add. No page is touched then.
  base::Result<serve::RunCost> Run(std::span<const serve::TokenRun> runs, std::span<float> logits) override;
  // As Run, but logits stay on the device; best: the likeliest id of each wanted row.
  base::Result<serve::RunCost> RunGreedy(std::span<const serve::TokenRun> runs, std::span<int64_t> best);

  int64_t host_waits() const { return device_->waits(); }
  // Seconds of `times` launches of the last group of the last pass, one behind the other, with one wait.
  double LaunchAgain(int times);
  // Fills all pages with small normal numbers, for measurements.
  void FillPages();

 private:
  GpuExecutor(GpuModel model, const serve::ModelShape& shape, const PassForm& form);
  template <class Number>
  base::Result<serve::RunCost> Pass(std::span<const serve::TokenRun> runs, std::span<Number> out, int64_t columns,
                                    const at::Tensor& from);
  std::span<const int64_t> WantedOf(const Group& group) const;
  Group GroupAt(int64_t first) const;
  void Stage(const Group& group);
  void Launch(const Group& group);
  void Body(int64_t rows, bool head);
  serve::RunCost Cost() const;

  GpuModel model_;
  serve::ModelShape shape_;
  bool exact_ = true;
  int64_t table_ = 0;  // pages of the longest text
  at::Tensor staged_;
  Rows rows_;
  at::Tensor frequencies_;
  std::vector<at::Tensor> keys_, values_;  // per layer; the last page takes what padding writes
  at::Tensor mixed_, ffn_, logits_, best_;
  std::unique_ptr<Device> device_;

  // Of the pass that runs.
  serve::PassInput input_;
};

}  // namespace outrider::serve_gpu
