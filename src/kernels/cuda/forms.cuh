#pragma once
// How the products of a decoding step cut their work, by tokens: at most 8, 16 or 32. No bit depends on it.

namespace outrider::kernels::cuda {

struct ProductForm {
  int row_tiles;  // tiles of pairs of rows that a block has at a time
  int halves;     // half blocks of the summed dimension that a warp has under way
  int blocks;     // on a multiprocessor
  int ahead;      // blocks of it that a warp sends for before what is in front of the kernel has ended
};

struct ColumnForm {
  int groups;   // groups of channels that a warp has under way
  int hiddens;  // hidden numbers of as many of them: all or one
  int ahead;    // groups that it sends for, likewise
};

constexpr ProductForm kWideForms[] = {{3, 2, 2, 0}, {3, 2, 2, 0}, {2, 2, 1, 1}};
// Of products with as many rows as a model is wide.
constexpr ProductForm kNarrowForms[] = {{1, 4, 2, 2}, {1, 4, 2, 2}, {1, 2, 2, 7}};
constexpr ColumnForm kColumnForms[] = {{3, 3, 0}, {2, 2, 0}, {1, 1, 5}};

// Sent for in front of a kernel with more than 16 tokens: the first bytes of pairs of rows of each cluster, and
// channels of each chain.
constexpr int kUnitsSentFor = 48, kBytesSentFor = 2048, kColumnsSentFor = 64;

// Where blocks share tokens (shared_product.cuh).
constexpr ProductForm kWideShared = {3, 4, 1, 2};
constexpr ProductForm kNarrowShared = {2, 4, 1, 4};

}  // namespace outrider::kernels::cuda
