#pragma once
// What a pass needs beyond plain operators, in two forms: public operators (any device), and kernels inside one
// captured graph per kind of pass (CUDA).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "base/result.h"
#include "serve_gpu/gpu_model.h"

namespace outrider::serve_gpu {

constexpr int64_t kRowsMax = 32;  // tokens of one graph

// The tokens of a pass; every tensor lies on the device and stays where it is. Rows behind the pass's own are padding.
struct Rows {
  at::Tensor ids;        // int32 [kRowsMax]
  at::Tensor positions;  // int32 [kRowsMax]
  at::Tensor experts;    // uint8 [kRowsMax]; 0 of a dense model
  at::Tensor pages;      // int32 [kRowsMax, table]
};

struct AttendCall {
  at::Tensor qkv;           // [at least rows, (heads + 2 kv_heads) * head_dim]; may be changed
  at::Tensor cos, sin;      // fp32 [at least rows, head_dim / 2]
  at::Tensor keys, values;  // [pages, kv_heads, page tokens, head_dim]
  at::Tensor out;           // [at least rows, heads * head_dim]
  int64_t rows = 0;
  int64_t window = 0;  // positions seen, the token's own included; 0: all
};

class Device {
 public:
  virtual ~Device() = default;
  // Turns queries and keys, writes keys and values into their pages, mixes the values of the first `rows` rows.
  virtual void Attend(const Rows& rows, const AttendCall& call) = 0;
  // y [at least rows, width]: the FFN of each row's expert over x.
  virtual void Ffn(const Rows& rows, const GpuLayer& layer, int64_t count, const at::Tensor& x,
                   const at::Tensor& y) = 0;
  // Pass number `kind`; body: all operators of it. The first call of a kind prepares it.
  virtual void Run(int kind, const std::function<void()>& body) = 0;
  // Rows [first, first + count) of `from` on the host until the next call. Waits for all work so far: the only wait.
  virtual const void* Fetch(const at::Tensor& from, int64_t first, int64_t count) = 0;
  // The bytes that a pass copies to the device at its start, host memory that stays where it is.
  virtual int32_t* staging() = 0;
  virtual int64_t waits() const = 0;  // host waits so far
};

// `staged`: int32 on the device, filled from staging() at the start of each Run.
std::unique_ptr<Device> MakeReference(const GpuModel& model, const at::Tensor& staged);

// CUDA kernels and graphs. E_CUDA: this build has no CUDA, or the kernels do not fit the model.
base::Result<std::unique_ptr<Device>> MakeCuda(const GpuModel& model, const at::Tensor& staged);
// E_CUDA: this build or this machine has none.
base::Result<void> CheckCuda();

}  // namespace outrider::serve_gpu
