#include "kernels/machine.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/x86/engine_sets.h"

namespace outrider::kernels {
namespace {

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf Cpuid(unsigned leaf, unsigned subleaf) {
  Leaf r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

constexpr bool Bit(unsigned word, int bit) { return (word >> bit & 1U) != 0; }

// State components that the operating system saves (XCR0).
uint64_t SavedState() {
  if (!Bit(Cpuid(1, 0).ecx, 27)) return 0;  // OSXSAVE
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux grants tile registers to a process on request.
bool GrantTiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

std::vector<EngineSet> MachineEngines() {
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
  const Leaf basic = Cpuid(1, 0), extended = Cpuid(7, 0), more = Cpuid(7, 1);
  const uint64_t saved = SavedState();
  const bool avx2 =
      Bit(basic.ecx, 12) && Bit(basic.ecx, 29) && Bit(extended.ebx, 5) && (saved & kYmm) == kYmm;  // FMA, F16C, AVX2
  const bool avx512 = avx2 && Bit(extended.ebx, 16) && Bit(extended.ebx, 17) && Bit(extended.ebx, 30) &&
                      Bit(extended.ebx, 31) && (saved & kZmm) == kZmm;  // F, DQ, BW, VL
  const bool vnni = avx512 && Bit(extended.ecx, 11);
  const bool bf16 = avx512 && Bit(more.eax, 5);
  const bool tiles = bf16 && Bit(extended.edx, 22) && Bit(extended.edx, 24) && (saved & kTiles) == kTiles;
  std::vector<EngineSet> sets;
  if (tiles && GrantTiles()) sets.push_back(AmxEngines());
  if (bf16) sets.push_back(Avx512Bf16Engines());
  if (vnni) sets.push_back(Avx512VnniEngines());
  if (avx512) sets.push_back(Avx512Engines());
  if (avx2) sets.push_back(Avx2Engines());
  return sets;
}

}  // namespace outrider::kernels
