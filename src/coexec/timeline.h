#pragma once
// Spans of both runners for the Perfetto picture. Bounded; the oldest go first.

#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

namespace outrider::coexec {

enum class SpanKind : uint8_t { kStep, kWait, kRun, kRecord, kReplay, kCapture };
enum class SpanThread : uint8_t { kImperative, kGraphRunner };

struct Span {
  const char* name;  // a literal
  SpanKind kind;
  SpanThread thread;
  int64_t start_ns;
  int64_t duration_ns;
  int64_t step;
};

class Timeline {
 public:
  static constexpr size_t kSpansMax = 65'536;
  static constexpr int64_t kShortestNs = 1'000;  // shorter spans are not worth a line

  // Any thread. `name` must be a literal.
  void Add(const char* name, SpanKind kind, SpanThread thread, int64_t start_ns, int64_t duration_ns);
  void SetStep(int64_t step);
  std::vector<Span> Copy() const;
  void Clear();

 private:
  mutable std::mutex mutex_;
  std::deque<Span> spans_;  // guarded by mutex_
  int64_t step_ = 0;        // guarded by mutex_
};

}  // namespace outrider::coexec
