// Decode: a few tokens, bound by memory. Each record of the union of the tokens' experts is read once.
//
//   Hidden   h [token, channel] bf16, zero where the channel is not the token's; a block has 16 stored channels
//   Columns  fp32 sums of h * down over one part of the stored order
//   Join     the parts one after another
//
// Both products use m16n8k16. Which numbers of the summed dimension a lane holds is free as long as both operands
// agree, so every lane reads 16 contiguous bytes.
#include <cuda_bf16.h>

#include "kernels/cuda/tied_ffn.h"

namespace outrider::kernels::cuda {
namespace {

constexpr int kGroup = 16;  // channels of a Hidden block, and of one step of Columns
constexpr int kThreads = 128;
constexpr int kOutputs = 256;  // of a Columns block: 64 a warp

__host__ __device__ constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ int PaddedChannels(const Layer& layer) { return CeilDiv(layer.channels, kGroup) * kGroup; }

__device__ __forceinline__ void Multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Weights pass through once and need not stay in the first cache; what lies next to them is wanted soon. Not volatile:
// an unrolled loop sends its loads before it multiplies.
__device__ __forceinline__ uint4 LoadWeights(const uint8_t* at, bool valid) {
  uint4 value = {0, 0, 0, 0};
  if (valid)
    asm("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
        : "l"(at));
  return value;
}

// Bits of the experts of all tokens of the step.
__device__ __forceinline__ unsigned Wanted(const uint8_t* ids, int tokens) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return __reduce_or_sync(~0U, lane < tokens ? 1U << ids[lane] : 0U);
}

__device__ __forceinline__ float SiluTimes(float g, float u) { return __fdividef(g, 1.0F + __expf(-g)) * u; }

// Gates and ups of 16 channels for kTiles * 8 tokens over numbers [first, last) of the width.
template <int kTiles>
__device__ __forceinline__ void Dots(const uint8_t* const (&rows)[2], const bool (&valid)[2], const uint8_t* x,
                                     int tokens, int width, int first, int last, float (&gate)[kTiles][4],
                                     float (&up)[kTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 4
  for (int k = first; k < last; k += 32) {
    const int byte = (k + lane % 4 * 8) * 2;
    const uint4 g0 = LoadWeights(rows[0] + byte, valid[0]), g1 = LoadWeights(rows[1] + byte, valid[1]);
    const uint4 u0 = LoadWeights(rows[0] + 2 * width + byte, valid[0]);
    const uint4 u1 = LoadWeights(rows[1] + 2 * width + byte, valid[1]);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int token = tile * 8 + lane / 4;
      uint4 b = {0, 0, 0, 0};
      if (token < tokens) b = __ldg(reinterpret_cast<const uint4*>(x + static_cast<int64_t>(token) * width * 2 + byte));
      Multiply(gate[tile], g0.x, g1.x, g0.y, g1.y, b.x, b.y);
      Multiply(gate[tile], g0.z, g1.z, g0.w, g1.w, b.z, b.w);
      Multiply(up[tile], u0.x, u1.x, u0.y, u1.y, b.x, b.y);
      Multiply(up[tile], u0.z, u1.z, u0.w, u1.w, b.z, b.w);
    }
  }
}

template <int kTiles>
__global__ void __launch_bounds__(kThreads)
    Hidden(Layer layer, const uint8_t* ids, const uint8_t* x, int tokens, __nv_bfloat16* hidden) {
  constexpr int kWarps = kThreads / 32;
  __shared__ float sums[kWarps][2][kGroup][kTiles * 8];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int channel = static_cast<int>(blockIdx.x) * kGroup;
  const unsigned wanted = Wanted(ids, tokens);
  const uint8_t* rows[2];
  bool valid[2];
  for (int i = 0; i < 2; ++i) {
    const int c = channel + lane / 4 + 8 * i;
    valid[i] = c < layer.channels && (layer.signatures[c] & wanted) != 0;
    rows[i] = static_cast<const uint8_t*>(layer.records) + static_cast<int64_t>(valid[i] ? c : 0) * 6 * layer.width;
  }
  float gate[kTiles][4] = {}, up[kTiles][4] = {};
  const int share = layer.width / kWarps;
  if (__any_sync(~0U, valid[0] || valid[1]))
    Dots<kTiles>(rows, valid, x, tokens, layer.width, warp * share, (warp + 1) * share, gate, up);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = tile * 8 + lane % 4 * 2 + i % 2;
      sums[warp][0][row][column] = gate[tile][i];
      sums[warp][1][row][column] = up[tile][i];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kGroup * kTiles * 8; i += kThreads) {
    const int c = i % kGroup, token = i / kGroup;
    float g = 0, u = 0;
    for (int w = 0; w < kWarps; ++w) {
      g += sums[w][0][c][token];
      u += sums[w][1][c][token];
    }
    const bool has =
        token < tokens && channel + c < layer.channels && (layer.signatures[channel + c] >> ids[token] & 1) != 0;
    hidden[static_cast<int64_t>(token) * PaddedChannels(layer) + channel + c] =
        __float2bfloat16(has ? SiluTimes(g, u) : 0);
  }
}

// Number `j` of each of two rows as one pair.
__device__ __forceinline__ uint32_t Pair(uint4 low, uint4 high, int j) {
  const uint32_t l = j < 2 ? low.x : j < 4 ? low.y : j < 6 ? low.z : low.w;
  const uint32_t h = j < 2 ? high.x : j < 4 ? high.y : j < 6 ? high.z : high.w;
  return __byte_perm(l, h, j % 2 == 0 ? 0x5410 : 0x7632);
}

// kTiles * 8 tokens have rows in hidden; kRows = tiles of 16 of them.
template <int kTiles>
__global__ void __launch_bounds__(kThreads)
    Columns(Layer layer, const uint8_t* ids, const __nv_bfloat16* hidden, int tokens, float* parts) {
  constexpr int kRows = (kTiles + 1) / 2;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int output = static_cast<int>(blockIdx.x) * kOutputs + warp * 64, part = static_cast<int>(blockIdx.y);
  const int groups = CeilDiv(layer.channels, kGroup), padded = PaddedChannels(layer);
  const unsigned wanted = Wanted(ids, tokens);
  const uint8_t* columns = static_cast<const uint8_t*>(layer.records) + 4 * layer.width + (output + lane / 4 * 8) * 2;
  float c[kRows][8][4] = {};
#pragma unroll 4
  for (int group = part * groups / kDecodeParts; group < (part + 1) * groups / kDecodeParts; ++group) {
    const int channel = group * kGroup + lane % 4 * 4;
    uint4 rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool valid = channel + i < layer.channels && (layer.signatures[channel + i] & wanted) != 0;
      rows[i] = LoadWeights(columns + static_cast<int64_t>(valid ? channel + i : 0) * 6 * layer.width, valid);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int token = r * 16 + lane / 4;
      const auto* at = hidden + static_cast<int64_t>(token) * padded + channel;
      const uint2 a = *reinterpret_cast<const uint2*>(at);
      uint2 b = {0, 0};
      if (r * 16 + 8 < kTiles * 8) b = *reinterpret_cast<const uint2*>(at + 8 * static_cast<int64_t>(padded));
#pragma unroll
      for (int j = 0; j < 8; ++j)
        Multiply(c[r][j], a.x, b.x, a.y, b.y, Pair(rows[0], rows[1], j), Pair(rows[2], rows[3], j));
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // i / 2: tokens 8 on; i % 2: outputs 8 on
      const int token = r * 16 + i / 2 * 8 + lane / 4;
      if (token >= tokens) continue;
      float* to =
          parts + (static_cast<int64_t>(part) * tokens + token) * layer.width + output + lane % 4 * 16 + i % 2 * 8;
      *reinterpret_cast<float4*>(to) = {c[r][0][i], c[r][1][i], c[r][2][i], c[r][3][i]};
      *reinterpret_cast<float4*>(to + 4) = {c[r][4][i], c[r][5][i], c[r][6][i], c[r][7][i]};
    }
  }
}

__global__ void Join(const float* parts, int numbers, __nv_bfloat16* y) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= numbers) return;
  float sum = parts[i];
  for (int part = 1; part < kDecodeParts; ++part) sum += parts[static_cast<int64_t>(part) * numbers + i];
  y[i] = __float2bfloat16(sum);
}

int64_t HiddenSize(const Layer& layer) { return static_cast<int64_t>(kDecodeTokensMax) * PaddedChannels(layer) * 2; }

template <int kTiles>
cudaError_t Launch(const Layer& layer, const uint8_t* ids, const void* x, void* y, int tokens, void* scratch,
                   cudaStream_t stream) {
  auto* hidden = static_cast<__nv_bfloat16*>(scratch);
  auto* parts = reinterpret_cast<float*>(static_cast<uint8_t*>(scratch) + HiddenSize(layer));
  const auto groups = static_cast<unsigned>(CeilDiv(layer.channels, kGroup));
  Hidden<kTiles><<<groups, kThreads, 0, stream>>>(layer, ids, static_cast<const uint8_t*>(x), tokens, hidden);
  const dim3 blocks(static_cast<unsigned>(layer.width / kOutputs), kDecodeParts);
  Columns<kTiles><<<blocks, kThreads, 0, stream>>>(layer, ids, hidden, tokens, parts);
  const int numbers = tokens * layer.width;
  Join<<<static_cast<unsigned>(CeilDiv(numbers, 256)), 256, 0, stream>>>(parts, numbers,
                                                                         static_cast<__nv_bfloat16*>(y));
  return cudaGetLastError();
}

}  // namespace

int64_t DecodeBytes(const Layer& layer, int tokens) {
  return HiddenSize(layer) + static_cast<int64_t>(kDecodeParts) * tokens * layer.width * 4;
}

cudaError_t Decode(const Layer& layer, const uint8_t* ids, const void* x, void* y, int tokens, void* scratch,
                   cudaStream_t stream) {
  const bool fits = layer.width > 0 && layer.width % kWidthMultiple == 0 && layer.channels > 0 && layer.experts >= 1 &&
                    layer.experts <= kExpertsMax && tokens >= 0 && tokens <= kDecodeTokensMax;
  if (!fits) return cudaErrorInvalidValue;
  if (tokens == 0) return cudaSuccess;
  if (tokens <= 8) return Launch<1>(layer, ids, x, y, tokens, scratch, stream);
  if (tokens <= 16) return Launch<2>(layer, ids, x, y, tokens, scratch, stream);
  return Launch<4>(layer, ids, x, y, tokens, scratch, stream);
}

}  // namespace outrider::kernels::cuda
