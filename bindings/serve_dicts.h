#pragma once
// What the serving engine tells, as Python reads it.

#include <pybind11/pybind11.h>

#include "serve/request.h"
#include "serve/stats.h"

// Keys: stream, tokens, experts, logprobs (list of (token, logprob, [(token, logprob)])), finish (None, "stop",
// "length", "cancelled", "deadline", "error"), error, prompt_tokens, cached_tokens, written_tokens.
pybind11::dict ToDict(const outrider::serve::Event& event);

// One key per field of EngineStats; step_seconds: bounds, counts, sum; ended: how many requests by outcome.
pybind11::dict ToDict(const outrider::serve::EngineStats& stats);
