#pragma once
// outrider._core.CpuPasses: passes and routes of the CPU executor by hand, for tests and benchmarks.

#include <pybind11/pybind11.h>

void DefineCpuPasses(pybind11::module_& m);
