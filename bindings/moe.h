#pragma once
// outrider._core.refactor and outrider._core.Workbench: from a dense model to experts and a router.

#include <pybind11/pybind11.h>

void DefineMoe(pybind11::module_& m);
