#include "kernels/cpu.h"

#include <array>
#include <vector>

#include "kernels/machine.h"

namespace outrider::kernels {
namespace {

struct Found {
  std::array<std::vector<const PrefillEngine*>, 2> prefill;
  std::array<std::vector<const DecodeEngine*>, 2> decode;

  void Add(const EngineSet& set) {
    for (size_t n = 0; n < 2; ++n) {
      if (set.prefill[n] != nullptr) prefill[n].push_back(set.prefill[n]);
      if (set.decode[n] != nullptr) decode[n].push_back(set.decode[n]);
    }
  }
};

const Found& Engines() {
  static const Found found = [] {
    Found all;
    for (const EngineSet& set : MachineEngines()) all.Add(set);
    all.Add(PortableEngines());
    return all;
  }();
  return found;
}

}  // namespace

std::span<const PrefillEngine* const> PrefillEngines(Number number) {
  return Engines().prefill[static_cast<size_t>(number)];
}

std::span<const DecodeEngine* const> DecodeEngines(Number number) {
  return Engines().decode[static_cast<size_t>(number)];
}

}  // namespace outrider::kernels
