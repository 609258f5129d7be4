#pragma once
// What the next kernel of a chain reads first: weights that a kernel sends into the second cache while it ends, so that
// memory does not rest from its last loads to the first ones behind it. A hint: no bit depends on it.

#include <cstdint>

namespace outrider::kernels::cuda {

struct Following {
  const uint8_t* weight = nullptr;
  const int32_t* list = nullptr;   // line of each unit, or null: they are counted
  const int32_t* count = nullptr;  // how many units there are; null: `units`
  int units = 0;
  int fold = 0, fold_lines = 0;  // without list: unit u is line u / fold * fold_lines + u % fold; fold 0: line u
  int64_t line_bytes = 0;        // from one line to the next
  int64_t second = 0;            // from a unit's first piece to its second one; 0: there is none
  int bytes = 0;                 // of a piece, a multiple of 16
  int parts = 1, each = 0;       // the first `each` units of every part are sent for
};

}  // namespace outrider::kernels::cuda
