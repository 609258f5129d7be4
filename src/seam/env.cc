#include "seam/env.h"
#include "seam/keys.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
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

namespace {

using c10::DispatchKey;

// In order of preference. All were found free and working on the supported torch minors; every load probes again.
constexpr std::array<DispatchKey, 1> kInnerCandidates = {DispatchKey::Fake};
constexpr std::array<DispatchKey, 2> kOuterCandidates = {DispatchKey::DeferredInit, DispatchKey::TESTING_ONLY_GenericMode};

LaneKeys g_keys;
BoxedHandler g_inner = nullptr;
BoxedHandler g_outer = nullptr;

void InnerFallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) { g_inner(op, keys, stack); }
void OuterFallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) { g_outer(op, keys, stack); }

template <c10::BoxedKernel::BoxedKernelFunction_withDispatchKeys* fallback, size_t N>
DispatchKey Claim(const std::array<DispatchKey, N>& candidates) {
  for (DispatchKey key : candidates) {
    if (c10::Dispatcher::singleton().hasBackendFallbackForDispatchKey(key)) continue;
    try {
      static std::unique_ptr<torch::Library> library;
      library = std::make_unique<torch::Library>(torch::Library::IMPL, "_", key, __FILE__, __LINE__);
      library->fallback(torch::CppFunction::makeFromBoxedFunction<fallback>());
      library.release();  // stays registered until the process ends
      return key;
    } catch (const std::exception&) {
      continue;  // taken between the probe and the registration
    }
  }
  return DispatchKey::Undefined;
}

c10::DispatchKeySet LaneKeySet() {
  c10::DispatchKeySet keys;
  if (g_keys.HasInner()) keys = keys.add(g_keys.inner);
  if (g_keys.HasOuter()) keys = keys.add(g_keys.outer);
  return keys;
}

}  // namespace

const LaneKeys& ClaimKeys(BoxedHandler inner, BoxedHandler outer) {
  static const bool once = [&] {
    g_inner = inner;
    g_outer = outer;
    g_keys.inner = Claim<&InnerFallback>(kInnerCandidates);
    g_keys.outer = Claim<&OuterFallback>(kOuterCandidates);
    return true;
  }();
  (void)once;
  return g_keys;
}

const LaneKeys& Keys() { return g_keys; }

std::string DescribeKeys() { return std::string("inner=") + c10::toString(g_keys.inner) + " outer=" + c10::toString(g_keys.outer); }

void EnrolThread(bool on) {
  if (g_keys.HasInner()) c10::impl::tls_set_dispatch_key_included(g_keys.inner, on);
  if (g_keys.HasOuter()) c10::impl::tls_set_dispatch_key_included(g_keys.outer, on);
}

bool ThreadEnrolled() { return g_keys.HasInner() && c10::impl::tls_is_dispatch_key_included(g_keys.inner); }

// A dispatch mode of the program must not see the library's own copies either.
LanesOff::LanesOff() : guard_(LaneKeySet().add(DispatchKey::Python).add(DispatchKey::PythonTLSSnapshot)) {}

}  // namespace outrider::seam
