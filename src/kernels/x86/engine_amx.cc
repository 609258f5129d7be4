// Prefill in bf16 with tile registers. A tile is 16 rows of 64 bytes; C += A B with A [16, 32] along the summed
// dimension and B as [16 pairs][16][2].
//
//   gate_up  C [channel, token]: A = 16 gathered rows, copied line by line; B = x, packed once per segment
//   down     C [token, output]:  A = hidden;  B = pairs of down columns, interleaved from the records
#include <immintrin.h>

#include "kernels/engine.h"
#include "kernels/vector_math.h"
#include "kernels/x86/engine_sets.h"
#include "kernels/x86/vector16.h"

namespace outrider::kernels {
namespace {

constexpr int64_t kTile = 1024;  // bytes
constexpr int64_t kBlock = 32;   // channels of a gate_up task, outputs of a down task, numbers of a tile row

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileShapes kShapes;

// The tile loads of some compilers do not say that they read memory.
void AfterStores() { __asm__ volatile("" ::: "memory"); }

int64_t Steps(int64_t numbers) { return (numbers + kBlock - 1) / kBlock; }
int64_t PackedBytes(int64_t width) { return width * 2; }
int64_t HiddenBytes(int64_t active) { return Steps(active) * kBlock * 2; }
int64_t ScratchBytes(int64_t width, int64_t active) {
  const int64_t gate_up = 4 * Steps(width) * kTile + 8 * kTile, down = 2 * Steps(active) * kTile + 4 * kTile;
  return gate_up > down ? gate_up : down;
}
int64_t TokenTiles(const Segment& segment) { return (segment.count + 15) / 16; }

// In place; rows and columns of 32-bit numbers.
void Transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), b = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

void PackTokens(const Segment& segment, const void* x, int64_t width, int64_t first, int64_t last) {
  const auto* rows = static_cast<const uint16_t*>(x);
  for (int64_t tile = first; tile < last; ++tile) {
    std::byte* to = segment.packed + tile * Steps(width) * kTile;
    for (int64_t k = 0; k < width; k += kBlock, to += kTile) {
      __m512i r[16];
      for (int64_t t = 0; t < 16; ++t) {
        const int64_t token = tile * 16 + t;
        r[t] = token < segment.count ? _mm512_loadu_si512(rows + segment.tokens[token] * width + k)
                                     : _mm512_setzero_si512();
      }
      Transpose(r);
      for (int64_t pair = 0; pair < 16; ++pair) _mm512_store_si512(to + pair * 64, r[pair]);
    }
  }
}

// Gate and up rows of channels [first, last): tiles [half][gate, up][step], rows past the end zero.
void PackRows(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, std::byte* to) {
  const int64_t steps = Steps(layer.width), row_bytes = layer.width * 2;
  for (int64_t i = 0; i < kBlock; ++i) {
    std::byte* tiles = to + i / 16 * 2 * steps * kTile + i % 16 * 64;
    if (first + i >= last) {
      for (int64_t step = 0; step < 2 * steps; ++step) _mm512_store_si512(tiles + step * kTile, _mm512_setzero_si512());
      continue;
    }
    const std::byte* record = layer.records + segment.channels[first + i] * 3 * row_bytes;
    const int64_t later = first + i + 2 < segment.active ? first + i + 2 : segment.active - 1;
    const std::byte* ahead = layer.records + segment.channels[later] * 3 * row_bytes;
    for (int64_t step = 0; step < 2 * steps; ++step) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + step * 64), _MM_HINT_T0);
      _mm512_store_si512(tiles + step * kTile, _mm512_loadu_si512(record + step * 64));
    }
  }
}

// C tiles of 16 channels and one or two token tiles to out: gate 0, gate 1, up 0, up 1.
template <bool kTwo>
void GateUpTiles(const std::byte* rows, const std::byte* x, int64_t steps, std::byte* out) {
  const std::byte* up_rows = rows + steps * kTile;
  const std::byte* x1 = x + steps * kTile;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t at = 0; at < steps * kTile; at += kTile) {
    _tile_loadd(4, rows + at, 64);
    _tile_loadd(6, x + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwo) {
      _tile_loadd(7, x1 + at, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_loadd(5, up_rows + at, 64);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (kTwo) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, 64);
  _tile_stored(2, out + 2 * kTile, 64);
  if constexpr (kTwo) {
    _tile_stored(1, out + kTile, 64);
    _tile_stored(3, out + 3 * kTile, 64);
  }
}

// One tile of hidden [16 tokens, 32 channels] from the gate and up tiles of both halves of the block.
void StoreHidden(const std::byte* results, std::byte* to) {
  __m512i pairs[16];
  for (int64_t i = 0; i < 16; ++i) {
    const auto* gate = reinterpret_cast<const float*>(results + i / 8 * 4 * kTile + i % 8 * 128);
    const float* up = gate + 2 * kTile / 4;
    const __m512 even = SiluTimes<Vector16>(_mm512_load_ps(gate), _mm512_load_ps(up));
    const __m512 odd = SiluTimes<Vector16>(_mm512_load_ps(gate + 16), _mm512_load_ps(up + 16));
    const __m512i low = _mm512_srli_epi32(Vector16::Rounded(even), 16);
    pairs[i] = _mm512_mask_blend_epi16(0xaaaaaaaaU, low, Vector16::Rounded(odd));
  }
  Transpose(pairs);
  for (int64_t t = 0; t < 16; ++t) _mm512_store_si512(to + t * 64, pairs[t]);
}

void GateUp(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, std::byte* scratch) {
  const int64_t steps = Steps(layer.width), tiles = TokenTiles(segment);
  std::byte* rows = scratch + 8 * kTile;
  PackRows(layer, segment, first, last, rows);
  AfterStores();
  _tile_loadconfig(&kShapes);
  for (int64_t tile = 0; tile < tiles; tile += 2) {
    const std::byte* x = segment.packed + tile * steps * kTile;
    const bool two = tile + 1 < tiles;
    for (int64_t half = 0; half < 2; ++half) {
      const std::byte* half_rows = rows + half * 2 * steps * kTile;
      if (two)
        GateUpTiles<true>(half_rows, x, steps, scratch + half * 4 * kTile);
      else
        GateUpTiles<false>(half_rows, x, steps, scratch + half * 4 * kTile);
    }
    std::byte* hidden = segment.hidden + (tile * Steps(segment.active) + first / kBlock) * kTile;
    StoreHidden(scratch, hidden);
    if (two) StoreHidden(scratch + kTile, hidden + Steps(segment.active) * kTile);
  }
  _tile_release();
}

// Pairs of down columns, outputs [first, first + 32): per step a tile of outputs 8q + r and one of outputs 8q + 4 + r,
// q and r in [0, 4), which is what interleaving inside 128-bit lanes gives.
void PackColumns(const LayerView& layer, const Segment& segment, int64_t first, std::byte* to) {
  const auto column = [&](int64_t c) {
    return layer.records + ((segment.channels[c] * 3 + 2) * layer.width + first) * 2;
  };
  for (int64_t c = 0; c < Steps(segment.active) * kBlock; c += 2) {
    const __m512i even = c < segment.active ? _mm512_loadu_si512(column(c)) : _mm512_setzero_si512();
    const __m512i odd = c + 1 < segment.active ? _mm512_loadu_si512(column(c + 1)) : _mm512_setzero_si512();
    for (int64_t later = c + 12; later < c + 14 && later < segment.active; ++later)
      _mm_prefetch(reinterpret_cast<const char*>(column(later)), _MM_HINT_T0);
    std::byte* tiles = to + c / kBlock * 2 * kTile + c % kBlock / 2 * 64;
    _mm512_store_si512(tiles, _mm512_unpacklo_epi16(even, odd));
    _mm512_store_si512(tiles + kTile, _mm512_unpackhi_epi16(even, odd));
  }
}

template <bool kTwo>
void DownTiles(const std::byte* hidden, const std::byte* columns, int64_t steps, std::byte* out) {
  const std::byte* hidden1 = hidden + steps * kTile;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t at = 0; at < steps * kTile; at += kTile) {
    _tile_loadd(4, hidden + at, 64);
    _tile_loadd(6, columns + 2 * at, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, columns + 2 * at + kTile, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwo) {
      _tile_loadd(5, hidden1 + at, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, 64);
  _tile_stored(1, out + kTile, 64);
  if constexpr (kTwo) {
    _tile_stored(2, out + 2 * kTile, 64);
    _tile_stored(3, out + 3 * kTile, 64);
  }
}

void StoreOutputs(const Segment& segment, int64_t tile, const std::byte* sums, uint16_t* y, int64_t width) {
  alignas(64) uint16_t order[32];
  for (int o = 0; o < 32; ++o) order[o] = static_cast<uint16_t>(o / 8 * 4 + o % 4 + (o % 8 < 4 ? 0 : 16));
  const __m512i to_output = _mm512_load_si512(order);
  for (int64_t t = 0; t < 16 && tile * 16 + t < segment.count; ++t) {
    const __m512i low = _mm512_srli_epi32(Vector16::Rounded(_mm512_load_ps(sums + t * 64)), 16);
    const __m512i high = _mm512_srli_epi32(Vector16::Rounded(_mm512_load_ps(sums + kTile + t * 64)), 16);
    const __m512i both =
        _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(low)), _mm512_cvtepi32_epi16(high), 1);
    _mm512_storeu_si512(y + segment.tokens[tile * 16 + t] * width, _mm512_permutexvar_epi16(to_output, both));
  }
}

void Down(const LayerView& layer, const Segment& segment, int64_t first, int64_t, void* y, std::byte* scratch) {
  const int64_t steps = Steps(segment.active), tiles = TokenTiles(segment);
  std::byte* columns = scratch + 4 * kTile;
  PackColumns(layer, segment, first, columns);
  AfterStores();
  _tile_loadconfig(&kShapes);
  auto* out = static_cast<uint16_t*>(y) + first;
  for (int64_t tile = 0; tile < tiles; tile += 2) {
    const std::byte* hidden = segment.hidden + tile * steps * kTile;
    const bool two = tile + 1 < tiles;
    if (two)
      DownTiles<true>(hidden, columns, steps, scratch);
    else
      DownTiles<false>(hidden, columns, steps, scratch);
    StoreOutputs(segment, tile, scratch, out, layer.width);
    if (two) StoreOutputs(segment, tile + 1, scratch + 2 * kTile, out, layer.width);
  }
  _tile_release();
}

constexpr PrefillEngine kPrefillBf16 = {"amx",        Number::kBf16, 16,          kBlock,  kBlock, &PackedBytes,
                                        &HiddenBytes, &ScratchBytes, &PackTokens, &GateUp, &Down};

}  // namespace

EngineSet AmxEngines() { return {{nullptr, &kPrefillBf16}, {}}; }

}  // namespace outrider::kernels
