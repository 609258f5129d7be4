#pragma once
// Passes by hand, of any executor: their runs as Python has them, and what one pass gives and costs.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "result.h"
#include "serve/executor.h"

template <class Number>
using Array = pybind11::array_t<Number, pybind11::array::c_style | pybind11::array::forcecast>;
using Ids = Array<int32_t>;
using Experts = Array<uint8_t>;

template <class Number>
std::span<const Number> Span(const Array<Number>& array) {
  return {array.data(), static_cast<size_t>(array.size())};
}

// outrider._core.PassRun
struct PassRun {
  Ids ids;
  Experts experts;
  int64_t position;
  Ids pages;
  int64_t logits_from;
  int64_t prompt;
};

// run(token runs, numbers of the wanted rows) -> Result<RunCost>, without the GIL. Gives (rows [wanted, columns],
// costs).
template <class Number, class Run>
pybind11::tuple TimedPass(const std::vector<PassRun>& passed, int64_t columns, const Run& run) {
  std::vector<outrider::serve::TokenRun> runs;
  int64_t rows = 0;
  for (const PassRun& r : passed) {
    runs.push_back({Span(r.ids), Span(r.experts), r.position, Span(r.pages), r.logits_from, r.prompt});
    rows += r.ids.size() - r.logits_from;
  }
  pybind11::array_t<Number> out({rows, columns});
  const std::span<Number> to(out.mutable_data(), static_cast<size_t>(out.size()));
  auto cost = [&] {
    const pybind11::gil_scoped_release unlocked;
    return run(runs, to);
  }();
  const outrider::serve::RunCost found = Unwrap(std::move(cost));
  pybind11::dict costs;
  costs["weight_bytes"] = found.weight_bytes;
  costs["ffn_bytes"] = found.ffn_bytes;
  costs["seconds"] = found.seconds;
  return pybind11::make_tuple(out, costs);
}
