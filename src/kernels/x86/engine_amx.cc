// Prefill in bf16 with tile registers. A tile is 16 rows of 64 bytes; C += A B with A [16, 32] along the summed
// dimension and B as [16 pairs][16][2].
//
//   gate_up  C [channel, token]: A = 16 gathered rows, copied line by line; B = x, packed once per segment
//   down     C [token, output]:  A = hidden;  B = pairs of down columns, interleaved from the records
//
// What is gathered stays in the first cache while all tokens pass by: the summed dimension is cut into chunks of fixed
// size, and sums wait in memory between chunks.
#include <immintrin.h>

#include "kernels/engine.h"
#include "kernels/x86/engine_sets.h"
#include "kernels/x86/vector16.h"

namespace outrider::kernels {
namespace {

constexpr int64_t kTile = 1024;       // bytes
constexpr int64_t kBlock = 32;        // numbers of a tile row
constexpr int64_t kChannels = 16;     // of a gate_up task
constexpr int64_t kOutputs = 64;      // of a down task: two halves, the second one not always there
constexpr int64_t kRowSteps = 6;      // of a chunk of gate and up rows: 12 KiB
constexpr int64_t kColumnSteps = 6;   // of a chunk of down columns: 24 KiB
constexpr int64_t kPairs = 16;        // of token tiles that share one chunk
constexpr int64_t kSums = 4 * kTile;  // bytes of one pair and half

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
int64_t ScratchBytes(int64_t, int64_t) {
  constexpr int64_t kRows = 2 * kRowSteps, kColumns = 4 * kColumnSteps;
  return kPairs * 2 * kSums + (kRows > kColumns ? kRows : kColumns) * kTile;
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

// Steps [from, to) of gate and up rows of channels [first, last): tiles [gate, up][step], rows past the end zero.
void PackRows(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, int64_t from, int64_t to,
              std::byte* tiles) {
  const int64_t steps = to - from, row_bytes = layer.width * 2;
  for (int64_t i = 0; i < kChannels; ++i, tiles += 64) {
    if (first + i >= last) {
      for (int64_t step = 0; step < 2 * steps; ++step) _mm512_store_si512(tiles + step * kTile, _mm512_setzero_si512());
      continue;
    }
    const std::byte* gate = layer.records + segment.channels[first + i] * 3 * row_bytes + from * 64;
    for (int64_t step = 0; step < steps; ++step) {
      _mm512_store_si512(tiles + step * kTile, _mm512_loadu_si512(gate + step * 64));
      _mm512_store_si512(tiles + (steps + step) * kTile, _mm512_loadu_si512(gate + row_bytes + step * 64));
    }
  }
}

template <bool kTwo>
void LoadSums(const std::byte* sums) {
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + kTile, 64);
  if constexpr (!kTwo) return;
  _tile_loadd(2, sums + 2 * kTile, 64);
  _tile_loadd(3, sums + 3 * kTile, 64);
}

void ZeroSums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

template <bool kTwo>
void StoreSums(std::byte* sums) {
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kTile, 64);
  if constexpr (!kTwo) return;
  _tile_stored(2, sums + 2 * kTile, 64);
  _tile_stored(3, sums + 3 * kTile, 64);
}

// Sums of one or two token tiles, `x1` the second: gate 0, up 0, gate 1, up 1.
template <bool kTwo>
void GateUpTiles(const std::byte* rows, const std::byte* x, const std::byte* x1, int64_t steps, bool more,
                 std::byte* sums) {
  const std::byte* up_rows = rows + steps * kTile;
  if (more)
    LoadSums<kTwo>(sums);
  else
    ZeroSums();
  for (int64_t at = 0; at < steps * kTile; at += kTile) {
    _tile_loadd(4, rows + at, 64);
    _tile_loadd(6, x + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, up_rows + at, 64);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (kTwo) {
      _tile_loadd(7, x1 + at, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  StoreSums<kTwo>(sums);
}

// silu(g) * u to 14 bits, which bf16 does not show: 2^r by a polynomial of degree 4, and an approximate reciprocal.
__m512 SiluTimes14(__m512 g, __m512 u) {
  const __m512 z = _mm512_mul_ps(g, _mm512_set1_ps(-1.44269504F));
  const __m512 n = Vector16::Round(z), r = _mm512_sub_ps(z, n);
  __m512 p = _mm512_set1_ps(9.6181291e-3F);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5504109e-2F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022651e-1F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9314718e-1F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F));
  const __m512 denominator = _mm512_add_ps(_mm512_scalef_ps(p, n), _mm512_set1_ps(1.0F));
  return _mm512_mul_ps(_mm512_mul_ps(g, u), _mm512_rcp14_ps(denominator));
}

// [even 16][odd 16] as bf16 -> pairs of even and odd.
__m512i Interleaved(__m512 even, __m512 odd) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both);
}

// Half a row (16 channels) of one or two tiles of hidden [16 tokens, 32 channels], `tile_bytes` apart.
template <bool kTwo>
void StoreHidden(const std::byte* sums, std::byte* to, int64_t tile_bytes) {
  __m512i pairs[16];
  for (int64_t i = 0; i < 16; ++i) {
    if (!kTwo && i >= 8) {
      pairs[i] = _mm512_setzero_si512();
      continue;
    }
    const auto* gate = reinterpret_cast<const float*>(sums + i / 8 * 2 * kTile + i % 8 * 128);
    const float* up = gate + kTile / 4;
    pairs[i] = Interleaved(SiluTimes14(_mm512_load_ps(gate), _mm512_load_ps(up)),
                           SiluTimes14(_mm512_load_ps(gate + 16), _mm512_load_ps(up + 16)));
  }
  Transpose(pairs);
  for (int64_t t = 0; t < 16; ++t) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + t * 64), _mm512_castsi512_si256(pairs[t]));
    if constexpr (kTwo)
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + tile_bytes + t * 64), _mm512_extracti64x4_epi64(pairs[t], 1));
  }
}

// Token tiles [begin, end) of the segment, at most kPairs pairs, for the channels of one task.
void GateUpTokens(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, int64_t begin,
                  int64_t end, std::byte* scratch) {
  const int64_t all = Steps(layer.width), tile_bytes = Steps(segment.active) * kTile;
  std::byte* rows = scratch + kPairs * 2 * kSums;
  for (int64_t from = 0; from < all; from += kRowSteps) {
    const int64_t to = from + kRowSteps < all ? from + kRowSteps : all;
    PackRows(layer, segment, first, last, from, to, rows);
    AfterStores();
    for (int64_t tile = begin; tile < end; tile += 2) {
      const std::byte* x = segment.packed + (tile * all + from) * kTile;
      std::byte* sums = scratch + (tile - begin) / 2 * kSums;
      std::byte* hidden = segment.hidden + tile * tile_bytes + first / kBlock * kTile + first % kBlock * 2;
      if (tile + 1 < end) {
        GateUpTiles<true>(rows, x, x + all * kTile, to - from, from > 0, sums);
        if (to == all) StoreHidden<true>(sums, hidden, tile_bytes);
      } else {
        GateUpTiles<false>(rows, x, x, to - from, from > 0, sums);
        if (to == all) StoreHidden<false>(sums, hidden, tile_bytes);
      }
    }
  }
}

// The last block of channels may be half a tile wide; the other half is then multiplied all the same.
void ZeroRest(const Segment& segment, int64_t first) {
  for (int64_t token = 0; token < TokenTiles(segment) * 16; ++token) {
    const int64_t tile = token / 16 * Steps(segment.active) + first / kBlock;
    _mm256_store_si256(reinterpret_cast<__m256i*>(segment.hidden + tile * kTile + token % 16 * 64 + 32),
                       _mm256_setzero_si256());
  }
}

void GateUp(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, std::byte* scratch) {
  const int64_t tiles = TokenTiles(segment);
  if (last == segment.active && first % kBlock == 0) ZeroRest(segment, first);
  _tile_loadconfig(&kShapes);
  for (int64_t begin = 0; begin < tiles; begin += 2 * kPairs)
    GateUpTokens(layer, segment, first, last, begin, begin + 2 * kPairs < tiles ? begin + 2 * kPairs : tiles, scratch);
  _tile_release();
}

// Steps [from, to) of pairs of down columns, outputs [first, first + 32 * halves), as [half][step][2 tiles]: a tile of
// outputs 8q + r and one of outputs 8q + 4 + r, q and r in [0, 4), which is what interleaving inside 128-bit lanes
// gives.
void PackColumns(const LayerView& layer, const Segment& segment, int64_t first, int64_t halves, int64_t from,
                 int64_t to, std::byte* tiles) {
  const auto column = [&](int64_t c) {
    return layer.records + ((segment.channels[c] * 3 + 2) * layer.width + first) * 2;
  };
  for (int64_t c = from * kBlock; c < to * kBlock; c += 2) {
    for (int64_t later = c + 12; later < c + 14 && later < segment.active; ++later) {
      _mm_prefetch(reinterpret_cast<const char*>(column(later)), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(column(later) + 64), _MM_HINT_T0);
    }
    std::byte* to_pair = tiles + (c / kBlock - from) * 2 * kTile + c % kBlock / 2 * 64;
    for (int64_t half = 0; half < halves; ++half, to_pair += (to - from) * 2 * kTile) {
      const __m512i even = c < segment.active ? _mm512_loadu_si512(column(c) + half * 64) : _mm512_setzero_si512();
      const __m512i odd =
          c + 1 < segment.active ? _mm512_loadu_si512(column(c + 1) + half * 64) : _mm512_setzero_si512();
      _mm512_store_si512(to_pair, _mm512_unpacklo_epi16(even, odd));
      _mm512_store_si512(to_pair + kTile, _mm512_unpackhi_epi16(even, odd));
    }
  }
}

// Sums of one or two token tiles, `hidden1` the second: low outputs 0, high outputs 0, low 1, high 1.
template <bool kTwo>
void DownTiles(const std::byte* hidden, const std::byte* hidden1, const std::byte* columns, int64_t steps, bool more,
               std::byte* sums) {
  if (more)
    LoadSums<kTwo>(sums);
  else
    ZeroSums();
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
  StoreSums<kTwo>(sums);
}

void StoreOutputs(const Segment& segment, int64_t tile, const std::byte* sums, uint16_t* y, int64_t width) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 1, 2,  3,  16, 17, 18, 19, 4,  5,  6,  7,  20, 21, 22, 23,
                                                      8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31};
  const __m512i order = _mm512_load_si512(kOrder);
  for (int64_t t = 0; t < 16 && tile * 16 + t < segment.count; ++t) {
    const __m512 low = _mm512_load_ps(sums + t * 64), high = _mm512_load_ps(sums + kTile + t * 64);
    const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    _mm512_storeu_si512(y + segment.tokens[tile * 16 + t] * width, _mm512_permutexvar_epi16(order, both));
  }
}

void DownTokens(const LayerView& layer, const Segment& segment, int64_t first, int64_t halves, int64_t begin,
                int64_t end, uint16_t* y, std::byte* scratch) {
  const int64_t all = Steps(segment.active);
  std::byte* columns = scratch + kPairs * 2 * kSums;
  for (int64_t from = 0; from < all || from == 0; from += kColumnSteps) {
    const int64_t to = from + kColumnSteps < all ? from + kColumnSteps : all;
    PackColumns(layer, segment, first, halves, from, to, columns);
    AfterStores();
    for (int64_t tile = begin; tile < end; tile += 2) {
      const std::byte* hidden = segment.hidden + (tile * all + from) * kTile;
      for (int64_t half = 0; half < halves; ++half) {
        const std::byte* half_columns = columns + half * (to - from) * 2 * kTile;
        std::byte* sums = scratch + ((tile - begin) / 2 * 2 + half) * kSums;
        if (tile + 1 < end)
          DownTiles<true>(hidden, hidden + all * kTile, half_columns, to - from, from > 0, sums);
        else
          DownTiles<false>(hidden, hidden, half_columns, to - from, from > 0, sums);
        if (to < all) continue;
        StoreOutputs(segment, tile, sums, y + half * 32, layer.width);
        if (tile + 1 < end) StoreOutputs(segment, tile + 1, sums + 2 * kTile, y + half * 32, layer.width);
      }
    }
  }
}

void Down(const LayerView& layer, const Segment& segment, int64_t first, int64_t last, void* y, std::byte* scratch) {
  const int64_t tiles = TokenTiles(segment), halves = (last - first) / 32;
  auto* out = static_cast<uint16_t*>(y) + first;
  _tile_loadconfig(&kShapes);
  for (int64_t begin = 0; begin < tiles; begin += 2 * kPairs) {
    const int64_t end = begin + 2 * kPairs < tiles ? begin + 2 * kPairs : tiles;
    DownTokens(layer, segment, first, halves, begin, end, out, scratch);
  }
  _tile_release();
}

constexpr PrefillEngine kPrefillBf16 = {"amx",        Number::kBf16, 16,          kChannels, kOutputs, &PackedBytes,
                                        &HiddenBytes, &ScratchBytes, &PackTokens, &GateUp,   &Down};

}  // namespace

EngineSet AmxEngines() { return {.prefill = {nullptr, &kPrefillBf16, nullptr}}; }

}  // namespace outrider::kernels
