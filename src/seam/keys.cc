#include "seam/keys.h"

#include <torch/library.h>

#include <array>
#include <memory>

namespace outrider::seam {
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
