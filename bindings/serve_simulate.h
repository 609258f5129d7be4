#pragma once
// The scheduler's simulator, for programs that compare policies without a machine.

#include <pybind11/pybind11.h>

void DefineSimulate(pybind11::module_& m);
