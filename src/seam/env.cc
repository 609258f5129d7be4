#include "seam/env.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <atomic>
#include <map>
#include <optional>

#include <xxhash.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace outrider::seam {
namespace {

std::atomic<uint64_t> g_flags{0};
std::atomic<bool> g_streams_matter{false};

}  // namespace

// The sum of what each flag is now: a flag that returns to an earlier value takes the sum back there.
void NoteFlag(const std::string& flag, const std::string& value) {
  static auto* known = new std::map<std::string, uint64_t>();
  const uint64_t now = XXH3_64bits_withSeed(value.data(), value.size(), XXH3_64bits(flag.data(), flag.size()));
  uint64_t& before = (*known)[flag];
  g_flags.fetch_add(now - before, std::memory_order_relaxed);
  before = now;
}

Env Env::Current() {
  Env env;
  env.grad = c10::GradMode::is_enabled();
  env.inference = c10::InferenceMode::is_enabled();
  env.autocast_cpu = at::autocast::is_autocast_enabled(at::kCPU);
  env.autocast_cuda = at::autocast::is_autocast_enabled(at::kCUDA);
  if (env.autocast_cpu) env.autocast_cpu_dtype = at::autocast::get_autocast_dtype(at::kCPU);
  if (env.autocast_cuda) env.autocast_cuda_dtype = at::autocast::get_autocast_dtype(at::kCUDA);
  if (env.autocast_cpu || env.autocast_cuda) env.autocast_cache = at::autocast::is_autocast_cache_enabled();
  env.default_dtype = c10::typeMetaToScalarType(c10::get_default_dtype());
  env.flags = g_flags.load(std::memory_order_relaxed);
  if (g_streams_matter.load(std::memory_order_relaxed)) env.stream = CurrentStream();
  return env;
}

void SetStreamsMatter(bool on) { g_streams_matter.store(on, std::memory_order_relaxed); }

void AdoptStream(DeviceStream stream) {
  thread_local DeviceStream adopted;
  if (stream.device < 0 || adopted == stream) return;
  SetCurrentStream(stream);
  adopted = stream;
}

void Env::Restore() const {
  RestoreModes();
  if (stream.device >= 0 && !(stream == CurrentStream())) SetCurrentStream(stream);
}

void Env::RestoreModes() const {
  c10::GradMode::set_enabled(grad);
  at::autocast::set_autocast_enabled(at::kCPU, autocast_cpu);
  at::autocast::set_autocast_enabled(at::kCUDA, autocast_cuda);
  if (autocast_cpu) at::autocast::set_autocast_dtype(at::kCPU, autocast_cpu_dtype);
  if (autocast_cuda) at::autocast::set_autocast_dtype(at::kCUDA, autocast_cuda_dtype);
  if (autocast_cpu || autocast_cuda) at::autocast::set_autocast_cache_enabled(autocast_cache);
}

void Env::Adopt() const {
  thread_local std::optional<Env> adopted;
  if (adopted == *this) return;
  AdoptStream(stream);
  RestoreModes();
  adopted = *this;
}

ThreadState ThreadState::Current() {
  ThreadState state;
  state.intra_op_threads = at::get_num_threads();
#if defined(__x86_64__)
  state.float_control = _mm_getcsr() & ~0x3fU;  // the sticky exception bits (0-5) are history, not control
#endif
  return state;
}

void ThreadState::Adopt() const {
  if (at::get_num_threads() != intra_op_threads) at::set_num_threads(intra_op_threads);
#if defined(__x86_64__)
  _mm_setcsr(float_control);
#endif
}

}  // namespace outrider::seam
