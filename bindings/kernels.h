#pragma once
// outrider._core.TiedFfn: one layer of channel records and both forms of its FFN on the CPU.

#include <pybind11/pybind11.h>

void DefineKernels(pybind11::module_& m);
