#pragma once
// outrider._core.ServeEngine: the serving engine over a model folder, and ServeRejected, by which it refuses requests.

#include <pybind11/pybind11.h>

void DefineServe(pybind11::module_& m);
