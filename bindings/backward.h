#pragma once
// The funnel of Python's backward calls.

#include <pybind11/pybind11.h>

// backward_enter(tensors, gradients, keep_graph, create_graph, inputs, accumulate) -> 0 run the engine, 1 done, 2 run the
// engine and then call backward_exit(completed).
void DefineBackward(pybind11::module_& m);
