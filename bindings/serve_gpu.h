#pragma once
// outrider._core.GpuPasses: passes of the GPU executor by hand, over random weights of any shape, for benchmarks.

#include <pybind11/pybind11.h>

void DefineGpuPasses(pybind11::module_& m);
