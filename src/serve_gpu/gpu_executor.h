#pragma once
// Passes over planned tokens in bf16 on a GPU, everything resident; on any device through the reference form. One
// thread calls.
//
// What was written runs in groups of up to kRowsMax, each one graph. Prompts run in chunks of up to kChunkMax, whose
// library products have kProductRows rows each. The two paths differ in the last bits; each has its bits from the text,
// the experts and the end of the prompt alone (ModelShape::prompts_apart).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "serve/cpu/pass_input.h"
#include "serve/executor.h"
#include "serve_gpu/device.h"
#include "serve_gpu/gpu_model.h"

namespace outrider::serve_gpu {

constexpr int64_t kProductRows = 256;  // of a library product over tokens of prompts

struct PassForm {
  // Library products have a fixed number of rows whatever the number of tokens, so that a token's bits do not depend on
  // it.
  bool exact = true;
  bool reference = false;  // public operators where kernels would run
  // Decoding of a dense model with library products and norms, and our attention: what our kernels are compared with.
  // The model has its FFN for it (GpuModel::AddLibraryFfn).
  bool library = false;
  // Puts something around the device. For fault injection; empty: nothing.
  std::function<std::unique_ptr<Device>(std::unique_ptr<Device>)> wrap = {};
};

class GpuExecutor : public serve::Executor {
 public:
  // Prepares every graph. Codes: E_LIMITS, E_CUDA. Throws c10::Error without memory.
  static base::Result<std::unique_ptr<GpuExecutor>> Make(GpuModel model, const serve::PassLimits& limits,
                                                         const PassForm& form);

  const serve::ModelShape& shape() const override { return shape_; }
  int64_t FfnBytes(uint16_t experts) const override { return model_.FfnBytes(experts); }
  int64_t FixedBytes() const override { return model_.LayerBytes() + model_.HeadBytes(); }
  // Codes: E_SHAPE, E_EXPERTS, and those of PassTokens::Add, after which no page is touched; E_DEVICE the device is
  // lost.
  base::Result<serve::RunCost> Run(std::span<const serve::TokenRun> runs, std::span<float> logits) override;
  // Logits stay on the device. Codes: those of Run.
  base::Result<serve::RunCost> RunGreedy(std::span<const serve::TokenRun> runs, std::span<int64_t> best) override;

  int64_t host_waits() const { return device_->waits(); }
  // Seconds of `times` launches of the last group of the last pass, one behind the other, with one wait.
  double LaunchAgain(int times);
  // Fills all pages with small normal numbers, for measurements.
  void FillPages();

 private:
  // Rows of the output, where they come from on the device.
  template <class Number>
  struct Output {
    std::span<Number> rows;
    int64_t columns;
    const at::Tensor& from;
  };

  GpuExecutor(GpuModel model, const serve::ModelShape& shape, const PassForm& form);
  template <class Number>
  base::Result<serve::RunCost> Pass(std::span<const serve::TokenRun> runs, const Output<Number>& out);
  template <class Number>
  void RunPrompts(const Output<Number>& out);
  template <class Number>
  void RunWritten(const Output<Number>& out);
  void Launch(int64_t count, bool head);
  void Layers(const Rows& rows, int64_t count, at::Tensor& x, int64_t product_rows);
  void LibraryFfn(const GpuLayer& layer, const at::Tensor& normed, at::Tensor& x) const;
  at::Tensor ChunkBody(const Rows& rows, int64_t count);
  void Body(int64_t rows, bool head);
  void Head(const at::Tensor& x);
  at::Tensor Angles(const Rows& rows, int64_t count) const;
  void CountCost(const serve::PassInput& input, const Group& group, bool head);

  GpuModel model_;
  serve::ModelShape shape_;
  bool exact_ = true, library_ = false;
  RowPlaces row_places_;
  ChunkPlaces chunk_places_;
  Staged staged_;
  Rows rows_, chunk_rows_;
  at::Tensor chunk_wanted_;
  at::Tensor frequencies_;
  std::vector<at::Tensor> keys_, values_;  // per layer; the last page takes what padding writes
  at::Tensor mixed_, ffn_, logits_, best_;
  std::unique_ptr<Device> device_;
  std::string lost_;  // why every further pass fails

  // Of the pass that runs.
  SplitPass input_;
  serve::RunCost cost_;
  int64_t launched_count_ = 0;
  bool launched_head_ = false;
};

}  // namespace outrider::serve_gpu
