#pragma once
// The walk of clusters of two blocks over the tiles of a grouped product; no CUDA header, so that it is tested without
// a device. A tile is 128 tokens of one expert by some of the columns. The blocks of a cluster take
//   together   two tiles of the same columns, whose second operand they share; or
//   crosswise  two tiles of the same tokens, whose first operand they share: where an expert has an odd tile of tokens.

#ifdef __CUDACC__
#define OUTRIDER_ON_DEVICE __host__ __device__
#else
#define OUTRIDER_ON_DEVICE
#endif

namespace outrider::kernels::cuda {

constexpr int kCluster = 2;
constexpr int kTileTokens = 128;
constexpr int kTableExperts = 16;

OUTRIDER_ON_DEVICE constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// One block's share of a unit: `rows` tokens from sorted token `first_row`, columns from `column`.
struct Tile {
  int expert = -1;  // -1: there is no such unit
  int first_row = 0;
  int rows = 0;
  int column = 0;
  bool together = false;
  bool idle = false;  // there are no such columns; the block only copies for its partner
};

// What the walk has to know of plan and layer.
struct Table {
  int rows_at[kTableExperts + 1];  // first sorted token of each expert
  int columns[kTableExperts];      // tiles across
};

// Units in the order expert, column, tokens: clusters that run at the same time share weights.
struct Walk {
  const Table* table;
  int experts;
  int width;                 // columns of a tile
  int rank;                  // of the block in its cluster
  int expert = 0, base = 0;  // where it stands: an expert and its first unit

  // The block's share of unit `index`, which must not be less than in the call before.
  OUTRIDER_ON_DEVICE Tile At(int index) {
    for (; expert < experts; ++expert) {
      const int units = Units();
      if (index - base < units) return Share(index - base);
      base += units;
    }
    return {};
  }

 private:
  OUTRIDER_ON_DEVICE int Rows() const { return table->rows_at[expert + 1] - table->rows_at[expert]; }
  OUTRIDER_ON_DEVICE int Down() const { return CeilDiv(Rows(), kTileTokens); }
  OUTRIDER_ON_DEVICE int Across() const { return table->columns[expert]; }
  OUTRIDER_ON_DEVICE int Together() const { return Down() / kCluster * Across(); }
  OUTRIDER_ON_DEVICE int Units() const { return Together() + Down() % kCluster * CeilDiv(Across(), kCluster); }

  OUTRIDER_ON_DEVICE Tile Share(int unit) const {
    int row = (Down() - 1) * kTileTokens, column = (unit - Together()) * kCluster + rank;
    Tile tile;
    tile.together = unit < Together();
    if (tile.together) {
      const int pairs = Down() / kCluster;
      row = (unit % pairs * kCluster + rank) * kTileTokens;
      column = unit / pairs;
    }
    tile.idle = column >= Across();
    if (tile.idle) column = Across() - 1;
    tile.expert = expert;
    tile.first_row = table->rows_at[expert] + row;
    tile.rows = Rows() - row < kTileTokens ? Rows() - row : kTileTokens;
    tile.column = column * width;
    return tile;
  }
};

}  // namespace outrider::kernels::cuda
