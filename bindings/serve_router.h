#pragma once
// outrider._core.RouterPasses: a router by hand, over random weights of any shape, for tests and benchmarks.

#include <pybind11/pybind11.h>

void DefineRouterPasses(pybind11::module_& m);
