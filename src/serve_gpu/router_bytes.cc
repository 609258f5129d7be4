#include "kernels/engine.h"
#include "serve_gpu/router_device.h"

namespace outrider::serve_gpu {

using serve::RouterContext;
using serve::RouteStage;

int64_t RouterBytes(const serve::RouterSpec& spec) {
  const int64_t matrices = (spec.context == RouterContext::kCausal ? 6 : 2) * spec.width + spec.experts;
  const int64_t launch = RouteStage::kTokensMax * (5 * spec.width + spec.experts);
  return (spec.vocab * spec.width + matrices * spec.width + launch) * 4;
}

int64_t RouterPageBytes(const serve::RouterSpec& spec) {
  return spec.context == RouterContext::kCausal ? 2 * spec.width * kernels::kPageTokens * 4 : 0;
}

}  // namespace outrider::serve_gpu
