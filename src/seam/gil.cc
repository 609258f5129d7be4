#include "seam/gil.h"

namespace outrider::seam {
namespace {
GilHooks g_hooks;
const char* (*g_locate)() = nullptr;
bool (*g_reader_asks)() = nullptr;
}  // namespace

void InstallGilHooks(const GilHooks& hooks) { g_hooks = hooks; }

GilRelease::GilRelease() {
  if (g_hooks.held != nullptr && g_hooks.held()) state_ = g_hooks.release();
}

GilRelease::~GilRelease() {
  if (state_ != nullptr) g_hooks.acquire(state_);
}

void InstallFrameLocator(const char* (*locate)()) { g_locate = locate; }

const char* UserFrame() {
  return g_locate == nullptr ? "" : g_locate();
}

void InstallReaderTest(bool (*asks)()) { g_reader_asks = asks; }

bool KnownReaderAsks() { return g_reader_asks != nullptr && g_reader_asks(); }

}  // namespace outrider::seam
