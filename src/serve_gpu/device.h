#pragma once
// What a pass needs beyond plain operators, in two forms: public operators (any device), and kernels (CUDA), which run
// inside one captured graph per kind of pass, those of prompts apart.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "serve_gpu/gpu_model.h"
#include "serve_gpu/staging.h"

namespace outrider::serve_gpu {

// int32 on the device, filled from the host's copy at the start of each pass.
struct Staged {
  at::Tensor rows, chunk;
};

// The tokens of a pass; every tensor lies on the device and stays where it is. Rows behind the pass's own are padding.
struct Rows {
  at::Tensor ids;        // int32 [n]
  at::Tensor positions;  // int32 [n]
  at::Tensor experts;    // uint8 [n]; 0 of a dense model
  at::Tensor pages;      // int32 [texts, table]
  // Of a chunk of prompts; undefined where row k has text k to itself.
  at::Tensor texts;  // int32 [n], row of `pages`
  at::Tensor tiles;  // int32 [tiles, kTileNumbers]: rows that attend together
  int64_t tiles_used = 0;

  bool chunk() const { return texts.defined(); }
};

struct AttendCall {
  at::Tensor qkv;           // [at least rows, (heads + 2 kv_heads) * head_dim]; may be changed
  at::Tensor cos, sin;      // fp32 [at least rows, head_dim / 2]
  at::Tensor keys, values;  // [pages, kv_heads, page tokens, head_dim]
  at::Tensor out;           // [at least rows, heads * head_dim]
  int64_t rows = 0;
  int64_t window = 0;  // positions seen, the token's own included; 0: all
};

// A decoding pass from ids to logits.
struct DecodePass {
  at::Tensor cos, sin;                  // fp32 [at least count, head_dim / 2]
  const std::vector<at::Tensor>& keys;  // per layer
  const std::vector<at::Tensor>& values;
  at::Tensor logits;  // fp32 [at least count, vocab], with `head`
  int64_t count = 0;  // rows
  bool head = false;
};

class Device {
 public:
  virtual ~Device() = default;
  // Turns queries and keys, writes keys and values into their pages, mixes the values of the first `rows` rows.
  virtual void Attend(const Rows& rows, const AttendCall& call) = 0;
  // y [at least rows, width]: the FFN of each row's expert over x.
  virtual void Ffn(const Rows& rows, const GpuLayer& layer, int64_t count, const at::Tensor& x,
                   const at::Tensor& y) = 0;
  // All of a decoding pass. False: this device leaves it to operators, Attend and Ffn.
  virtual bool Decode(const Rows& rows, const DecodePass& pass) {
    (void)rows, (void)pass;
    return false;
  }
  // best, int64 [rows]: as serve::Executor::RunGreedy tells them, of logits fp32 [rows, vocab].
  virtual void Likeliest(const at::Tensor& logits, const at::Tensor& best) = 0;
  // A pass of rows, number `kind`; body: all operators of it. The first call of a kind prepares it.
  virtual void Run(int kind, const std::function<void()>& body) = 0;
  // A chunk of `count` rows, prepared by nobody.
  virtual void RunChunk(const Rows& rows, int64_t count, const std::function<void()>& body) = 0;
  // Operators behind those that ran before.
  virtual void RunBehind(const std::function<void()>& body) = 0;
  // Rows [first, first + count) of `from` on the host until the next call. Waits for all work so far: the only wait.
  virtual const void* Fetch(const at::Tensor& from, int64_t first, int64_t count) = 0;
  // What passes copy to the device at their start, host memory that stays where it is.
  virtual int32_t* staging() = 0;
  virtual int32_t* chunk_staging() = 0;
  virtual int64_t waits() const = 0;  // host waits so far
};

std::unique_ptr<Device> MakeReference(const GpuModel& model, const Staged& staged);

// CUDA kernels and graphs. E_CUDA: this build has no CUDA, or the kernels do not fit the model.
base::Result<std::unique_ptr<Device>> MakeCuda(const GpuModel& model, const Staged& staged);

// E_CUDA: this build or this machine has none.
base::Result<void> CheckCuda();
// E_CUDA: shapes that the kernels do not take.
base::Result<void> CheckCudaShape(const spec::Config& config);
// Of the CUDA device that is used; call after CheckCuda.
struct CudaFacts {
  std::string name;
  int64_t free_bytes = 0;  // beside what this process holds, used or not
};
CudaFacts CudaFactsNow();

}  // namespace outrider::serve_gpu
