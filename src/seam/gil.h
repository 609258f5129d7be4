#pragma once
// The interpreter lock, seen from code that must also run in a process without Python. The binding installs the three
// functions at import; without them every call is a no-op.

namespace outrider::seam {

struct GilHooks {
  bool (*held)() = nullptr;
  void* (*release)() = nullptr;
  void (*acquire)(void* state) = nullptr;
};

void InstallGilHooks(const GilHooks& hooks);

// Releases the interpreter lock for the scope, if this thread holds it.
class GilRelease {
 public:
  GilRelease();
  ~GilRelease();
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  void* state_ = nullptr;
};

// "file:line" of the user's innermost frame, empty without Python. Takes the interpreter lock. Cold path only.
void InstallFrameLocator(const char* (*locate)());
const char* UserFrame();

// Whether the Python code that asks here and now is known to keep no address, such as torch.save. False without Python.
// Takes the interpreter lock. Cold path only.
void InstallReaderTest(bool (*asks)());
bool KnownReaderAsks();

}  // namespace outrider::seam
