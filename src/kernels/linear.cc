#include "kernels/linear.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu.h"

namespace outrider::kernels {
namespace {

// More tasks than threads, so that a slow thread does not hold up the others; each still a long walk.
constexpr int64_t kTasksPerThread = 4;

// x with whole blocks, or as blocks of whole numbers.
TokenBlocks Stage(const Matrix& matrix, const LinearCall& call, const LinearEngine& engine, Scratch& scratch,
                  Workers& workers) {
  const int64_t padded = matrix.padded_columns(), blocks = padded / kBlock;
  const bool pad = padded != matrix.columns(), whole = matrix.number() == Number::kI8;
  if (!pad && !whole) return {.x = call.x, .stride = padded, .count = call.tokens};
  scratch.Clear();
  const int64_t x_at = scratch.Add(pad ? call.tokens * padded * 4 : 0);
  const int64_t q_at = scratch.Add(whole ? call.tokens * padded * 2 : 0);
  const int64_t scales_at = scratch.Add(whole ? call.tokens * blocks * 4 : 0);
  scratch.Commit();
  auto* x = reinterpret_cast<float*>(scratch.Get(x_at));
  auto* q = reinterpret_cast<int16_t*>(scratch.Get(q_at));
  auto* scales = reinterpret_cast<float*>(scratch.Get(scales_at));
  workers.Run(call.tokens, [&](int64_t t, int) {
    const float* row = call.x + t * matrix.columns();
    if (pad) {
      float* to = x + t * padded;
      std::fill(std::copy(row, row + matrix.columns(), to), to + padded, 0.0F);
      row = to;
    }
    if (whole) engine.quantise(row, blocks, q + t * padded, scales + t * blocks);
  });
  return {.x = pad ? x : call.x, .stride = padded, .count = call.tokens, .q = q, .scales = scales};
}

PanelView ViewOf(const Matrix& matrix) {
  return {matrix.data(), matrix.panel_bytes(), matrix.padded_columns(), matrix.rows(), matrix.bias()};
}

}  // namespace

void Linear(const Matrix& matrix, const LinearCall& call, const LinearEngine& engine, Scratch& scratch,
            Workers& workers) {
  OUTRIDER_CHECK(engine.number == matrix.number(), engine.name);
  OUTRIDER_CHECK(call.stride >= matrix.rows(), "rows of ", call.stride, " numbers for ", matrix.rows());
  if (call.tokens == 0) return;
  const TokenBlocks tokens = Stage(matrix, call, engine, scratch, workers);
  const PanelView view = ViewOf(matrix);
  const LinearOutput output{call.y, call.stride, call.into == Into::kAdd};
  const int64_t panels = matrix.panels();
  const int64_t tasks = std::min<int64_t>(panels, workers.threads() == 1 ? 1 : workers.threads() * kTasksPerThread);
  workers.Run(tasks, [&](int64_t task, int) {
    engine.walk(view, tokens, task * panels / tasks, (task + 1) * panels / tasks, output);
  });
}

void Linear(const Matrix& matrix, const LinearCall& call, Scratch& scratch, Workers& workers) {
  Linear(matrix, call, *LinearEngines(matrix.number()).front(), scratch, workers);
}

void LinearPanel(const Matrix& matrix, const LinearCall& call, int64_t panel) {
  OUTRIDER_CHECK(matrix.number() != Number::kI8 && matrix.columns() == matrix.padded_columns() && call.tokens == 1);
  const TokenBlocks token{.x = call.x, .stride = matrix.columns(), .count = 1};
  LinearEngines(matrix.number())
      .front()
      ->walk(ViewOf(matrix), token, panel, panel + 1, {call.y, call.stride, call.into == Into::kAdd});
}

}  // namespace outrider::kernels
