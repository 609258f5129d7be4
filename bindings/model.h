#pragma once
// outrider._core.Model: a dense model, loaded.

#include <pybind11/pybind11.h>

void DefineModel(pybind11::module_& m);
