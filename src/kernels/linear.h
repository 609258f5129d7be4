#pragma once
// y = W x + b for a few tokens or many, bound by memory for few: each panel is read once, for all tokens.

#include "kernels/engine.h"
#include "kernels/matrix.h"
#include "kernels/scratch.h"
#include "kernels/workers.h"

namespace outrider::kernels {

enum class Into : uint8_t { kSet, kAdd };  // y = ..., or y += ...

struct LinearCall {
  const float* x = nullptr;  // [tokens, columns]
  int64_t tokens = 0;
  float* y = nullptr;  // [tokens, stride]
  int64_t stride = 0;  // at least the rows
  Into into = Into::kSet;
};

// For kI8, x is rounded to blocks of whole numbers, too. The bits of a token's row depend on its x, the matrix and the
// engine: not on other tokens or threads.
void Linear(const Matrix& matrix, const LinearCall& call, const LinearEngine& engine, Scratch& scratch,
            Workers& workers);

// With the fastest engine of this processor.
void Linear(const Matrix& matrix, const LinearCall& call, Scratch& scratch, Workers& workers);

// Rows of one panel, for one token and by the calling thread: the same bits. The matrix has whole blocks of columns and
// no whole numbers.
void LinearPanel(const Matrix& matrix, const LinearCall& call, int64_t panel);

}  // namespace outrider::kernels
