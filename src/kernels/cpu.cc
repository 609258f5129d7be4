#include "kernels/cpu.h"

#include <array>
#include <vector>

#include "kernels/machine.h"

namespace outrider::kernels {
namespace {

struct Found {
  std::array<std::vector<const PrefillEngine*>, kNumbers> prefill;
  std::array<std::vector<const DecodeEngine*>, kNumbers> decode;
  std::array<std::vector<const LinearEngine*>, kNumbers> linear;
  std::vector<const TokenEngine*> token;

  void Add(const EngineSet& set) {
    for (size_t n = 0; n < kNumbers; ++n) {
      if (set.prefill[n] != nullptr) prefill[n].push_back(set.prefill[n]);
      if (set.decode[n] != nullptr) decode[n].push_back(set.decode[n]);
      if (set.linear[n] != nullptr) linear[n].push_back(set.linear[n]);
    }
    if (set.token != nullptr) token.push_back(set.token);
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

std::span<const LinearEngine* const> LinearEngines(Number number) {
  return Engines().linear[static_cast<size_t>(number)];
}

std::span<const TokenEngine* const> TokenEngines() { return Engines().token; }

}  // namespace outrider::kernels
