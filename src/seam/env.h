#pragma once
// The environment of an operator call that its arguments do not show, and the thread state that kernels read.

#include <ATen/core/ATen_fwd.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>

#include "seam/backend.h"

namespace outrider::seam {

// Part of node equality and restored on replay.
struct Env {
  bool grad = true;
  bool inference = false;
  bool autocast_cpu = false;
  bool autocast_cuda = false;
  bool autocast_cache = true;
  c10::ScalarType autocast_cpu_dtype = c10::ScalarType::BFloat16;
  c10::ScalarType autocast_cuda_dtype = c10::ScalarType::Half;
  c10::ScalarType default_dtype = c10::ScalarType::Float;
  uint64_t flags = 0;       // what the numeric flag setters have set so far
  DeviceStream stream;      // programs that compute on the CPU: always the same

  static Env Current();
  void Restore() const;  // grad mode, autocast and stream; the rest cannot change inside a step without a flush
  // Restore on a thread whose environment nobody else changes: the graph runner.
  void Adopt() const;
  friend bool operator==(const Env&, const Env&) = default;

 private:
  void RestoreModes() const;
};

// Whether Env::Current() asks for the stream.
void SetStreamsMatter(bool on);
// Makes `stream` the graph runner's own, unless it is already.
void AdoptStream(DeviceStream stream);

// A numeric flag was set; both texts are compared only. Imperative thread.
void NoteFlag(const std::string& flag, const std::string& value);

// State that is private to a thread but decides bits: intra-op thread count and the floating-point control word. The
// imperative thread publishes it before each step; the graph runner adopts it.
struct ThreadState {
  int intra_op_threads = 1;
  uint32_t float_control = 0;

  static ThreadState Current();
  void Adopt() const;
  friend bool operator==(const ThreadState&, const ThreadState&) = default;
};

}  // namespace outrider::seam
