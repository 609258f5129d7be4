#pragma once
// Prefill with tokens in the lanes of vectors. Weights are read where they lie: gate and up rows are broadcast number
// by number from the records, and the down columns of a block of outputs are gathered into one panel per task.
//
// M, the multiply form, gives the vector type M::V, and works on 32-bit units along the summed dimension: one float, or
// two bf16. All instantiations are internal to their unit, because M is.

#include <cstddef>
#include <cstdint>

#include "kernels/engine.h"
#include "kernels/vector_math.h"

namespace outrider::kernels {

template <class M>
struct TileEngine {
  using V = typename M::V;
  using F = typename V::F;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kGroup = V::kGroup;  // vectors of tokens per tile at most
  static constexpr int64_t kChannelBlock = 48;  // a multiple of every V::Pairs(v)
  static constexpr int64_t kOutVectors = 3;     // of one down task
  static constexpr int64_t kOutputs = kOutVectors * kLanes;
  static constexpr int64_t kRows = V::kDownTokens;  // tokens of one down tile; divides kLanes

  static int64_t Units(int64_t numbers) { return (numbers + M::kDepth - 1) / M::kDepth; }
  static int64_t PackedBytes(int64_t width) { return Units(width) * 4; }
  static int64_t HiddenBytes(int64_t active) { return Units(active) * 4; }
  static int64_t RowsBytes(int64_t width) { return M::kDirect ? 0 : kChannelBlock * 2 * width * 4; }
  static int64_t ScratchBytes(int64_t width, int64_t active) {
    const int64_t gate_up = kChannelBlock * kGroup * kLanes * 4 + RowsBytes(width);
    const int64_t down = Units(active) * kOutputs * 4 + kOutputs * 4;
    return gate_up > down ? gate_up : down;
  }
  static int64_t Vectors(const Segment& segment) { return (segment.count + kLanes - 1) / kLanes; }

  // Vectors of tokens are kept in groups of kGroup, the last one shorter; a group is [unit][vector][lane].
  static void PackTokens(const Segment& segment, const void* x, int64_t width, int64_t first, int64_t last) {
    const int64_t units = Units(width), vectors = Vectors(segment);
    auto* packed = reinterpret_cast<uint32_t*>(segment.packed);
    for (int64_t v = first; v < last; ++v) {
      const int64_t group = v / kGroup * kGroup;
      const int64_t in_group = vectors - group < kGroup ? vectors - group : kGroup;
      uint32_t* to = packed + group * units * kLanes + (v - group) * kLanes;
      M::PackBlock(segment, x, width, v * kLanes, to, in_group * kLanes);
    }
  }

  struct ChannelRows {
    const uint32_t* rows[2 * 2 * 8];  // gate, up, gate, up ... of this tile, then of the next one
  };

  template <int TV, int P>
  static void GateUpTile(const uint32_t* x, const ChannelRows& at, int64_t units, float* hidden, int64_t stride) {
    F gate[P][TV], up[P][TV];
    OUTRIDER_UNROLLED
    for (int p = 0; p < P; ++p) OUTRIDER_UNROLLED
    for (int v = 0; v < TV; ++v) gate[p][v] = up[p][v] = V::Zero();
    for (int64_t k = 0; k < units; k += 16) {  // 16 units are one line of each row
      OUTRIDER_UNROLLED
      for (int r = 0; r < 2 * P; ++r) __builtin_prefetch(at.rows[2 * P + r] + k);
      for (int64_t i = k; i < k + 16; ++i) {
        F tokens[TV];
        OUTRIDER_UNROLLED
        for (int v = 0; v < TV; ++v) tokens[v] = M::Load(x + (i * TV + v) * kLanes);
        OUTRIDER_UNROLLED
        for (int p = 0; p < P; ++p) {
          const F g = M::Broadcast(at.rows[2 * p] + i), u = M::Broadcast(at.rows[2 * p + 1] + i);
          OUTRIDER_UNROLLED
          for (int v = 0; v < TV; ++v) {
            gate[p][v] = M::MulAdd(gate[p][v], tokens[v], g);
            up[p][v] = M::MulAdd(up[p][v], tokens[v], u);
          }
        }
      }
    }
    OUTRIDER_UNROLLED
    for (int p = 0; p < P; ++p) OUTRIDER_UNROLLED
    for (int v = 0; v < TV; ++v) V::Store(hidden + p * stride + v * kLanes, SiluTimes<V>(gate[p][v], up[p][v]));
  }

  // Row pointers of channel `c` of the block [first, last); channels past the end repeat the last one.
  static void RowsOf(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, int64_t c,
                     const std::byte* converted, const uint32_t** rows) {
    if (c >= last) c = last - 1;
    const int64_t row_bytes = layer.width * BytesOf(layer.number);
    const std::byte* record = M::kDirect ? layer.records + segment.channels[c] * 3 * row_bytes
                                         : converted + (c - first) * 2 * layer.width * 4;
    rows[0] = reinterpret_cast<const uint32_t*>(record);
    rows[1] = reinterpret_cast<const uint32_t*>(record + (M::kDirect ? row_bytes : layer.width * 4));
  }

  template <int TV>
  static void GateUpGroup(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, int64_t group,
                          std::byte* scratch) {
    constexpr int P = V::Pairs(TV);
    const int64_t units = Units(layer.width), stride = TV * kLanes;
    auto* local = reinterpret_cast<float*>(scratch);
    const std::byte* converted = scratch + kChannelBlock * kGroup * kLanes * 4;
    const auto* x = reinterpret_cast<const uint32_t*>(segment.packed) + group * units * kLanes;
    for (int64_t c = first; c < last; c += P) {
      ChannelRows at;
      OUTRIDER_UNROLLED
      for (int p = 0; p < 2 * P; ++p) RowsOf(layer, segment, first, last, c + p, converted, at.rows + 2 * p);
      GateUpTile<TV, P>(x, at, units, local + (c - first) * stride, stride);
    }
    for (int64_t i = (last - first) * stride; i < Units(last - first) * M::kDepth * stride; ++i) local[i] = 0;
    auto* hidden = reinterpret_cast<uint32_t*>(segment.hidden) + group * Units(segment.active) * kLanes;
    M::StoreHidden(local, Units(last - first), stride, hidden + first / M::kDepth * stride);
  }

  static void GateUp(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, std::byte* scratch) {
    if constexpr (!M::kDirect) {
      auto* to = reinterpret_cast<float*>(scratch + kChannelBlock * kGroup * kLanes * 4);
      const int64_t record_bytes = 3 * layer.width * BytesOf(layer.number);
      for (int64_t c = first; c < last; ++c)
        M::ConvertRow(layer.records + segment.channels[c] * record_bytes, 2 * layer.width,
                      to + (c - first) * 2 * layer.width);
    }
    const int64_t vectors = Vectors(segment);
    for (int64_t group = 0; group < vectors; group += kGroup) {
      switch (vectors - group) {
        case 1:
          GateUpGroup<1>(layer, segment, first, last, group, scratch);
          break;
        case 2:
          GateUpGroup<2>(layer, segment, first, last, group, scratch);
          break;
        case 3:
          GateUpGroup<3 < kGroup ? 3 : kGroup>(layer, segment, first, last, group, scratch);
          break;
        default:
          GateUpGroup<kGroup>(layer, segment, first, last, group, scratch);
      }
    }
  }

  template <int OV>
  static void DownTile(const uint32_t* hidden, int64_t stride, const uint32_t* panel, int64_t units, float* out) {
    F sums[kRows][OV];
    OUTRIDER_UNROLLED
    for (int t = 0; t < kRows; ++t) OUTRIDER_UNROLLED
    for (int v = 0; v < OV; ++v) sums[t][v] = V::Zero();
    for (int64_t k = 0; k < units; ++k) {
      F weights[OV];
      OUTRIDER_UNROLLED
      for (int v = 0; v < OV; ++v) weights[v] = M::Load(panel + (k * OV + v) * kLanes);
      OUTRIDER_UNROLLED
      for (int t = 0; t < kRows; ++t) {
        const F h = M::Broadcast(hidden + k * stride + t);
        OUTRIDER_UNROLLED
        for (int v = 0; v < OV; ++v) sums[t][v] = M::MulAdd(sums[t][v], h, weights[v]);
      }
    }
    OUTRIDER_UNROLLED
    for (int t = 0; t < kRows; ++t) OUTRIDER_UNROLLED
    for (int v = 0; v < OV; ++v) V::Store(out + (t * OV + v) * kLanes, sums[t][v]);
  }

  template <int OV>
  static void DownBlock(const LayerView& layer, const Segment& segment, int64_t first, void* y, std::byte* scratch) {
    const int64_t units = Units(segment.active), vectors = Vectors(segment);
    auto* panel = reinterpret_cast<uint32_t*>(scratch);
    M::PackPanel(layer, segment, first, OV * kLanes, panel);
    const auto* hidden = reinterpret_cast<const uint32_t*>(segment.hidden);
    float out[kRows * OV * kLanes];
    for (int64_t token = 0; token < segment.count; token += kRows) {
      const int64_t group = token / kLanes / kGroup * kGroup;
      const int64_t stride = (vectors - group < kGroup ? vectors - group : kGroup) * kLanes;
      DownTile<OV>(hidden + group * units * kLanes + (token - group * kLanes), stride, panel, units, out);
      for (int64_t t = token; t < token + kRows && t < segment.count; ++t)
        M::StoreOutput(out + (t - token) * OV * kLanes, OV, y, segment.tokens[t] * layer.width + first);
    }
  }

  static void Down(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, void* y,
                   std::byte* scratch) {
    switch ((last - first) / kLanes) {
      case 1:
        DownBlock<1>(layer, segment, first, y, scratch);
        break;
      case 2:
        DownBlock<2>(layer, segment, first, y, scratch);
        break;
      default:
        DownBlock<3>(layer, segment, first, y, scratch);
    }
  }

  static constexpr PrefillEngine Table(const char* name) {
    return {name,         M::kNumber,    kLanes,      kChannelBlock, kOutputs, &PackedBytes,
            &HiddenBytes, &ScratchBytes, &PackTokens, &GateUp,       &Down};
  }
};

}  // namespace outrider::kernels
