#pragma once
// Expected failures become ValueError("error CODE: message"): what the console program prints behind its name.

#include <pybind11/pybind11.h>

#include <utility>

#include "base/result.h"

template <class T>
T Unwrap(outrider::base::Result<T> result) {
  if (!result) throw pybind11::value_error("error " + result.error().code + ": " + result.error().message);
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}
