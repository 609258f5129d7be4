#pragma once
// The channels that a walk over records takes, a few at a time, with a look at those behind them: a record is asked for
// while records before it are multiplied, since memory answers later than one of them takes. Everything here is
// internal to the unit: each instruction set has its own.

#include <cstddef>
#include <cstdint>

#include "kernels/engine.h"
#include "kernels/vector_math.h"

namespace outrider::kernels {
namespace {

constexpr int kTogether = 4;  // channels whose outputs are added together

struct Channel {
  const std::byte* record;
  uint16_t signature;
};

// The channels of some runs that a step wants, in order. They are found some at a time and without a branch on each:
// which channels an expert has is as hard to predict as it is meant to be.
class ChannelCursor {
 public:
  ChannelCursor(const ChannelRuns& runs, int64_t first, const uint16_t* signatures, uint16_t wanted)
      : runs_(runs), signatures_(signatures), wanted_(wanted), start_(first), at_(first) {}

  // -1: no more.
  int64_t Next() {
    while (next_ == found_)
      if (!Find()) return -1;
    return channels_[next_++];
  }

 private:
  static constexpr int64_t kAtOnce = 32;

  bool Find() {
    if (start_ >= runs_.end) return false;
    const int64_t run_end = start_ + runs_.run < runs_.end ? start_ + runs_.run : runs_.end;
    const int64_t last = at_ + kAtOnce < run_end ? at_ + kAtOnce : run_end;
    next_ = found_ = 0;
    for (; at_ < last; ++at_) {
      channels_[found_] = at_;
      found_ += (signatures_[at_] & wanted_) != 0 ? 1 : 0;
    }
    if (at_ == run_end) at_ = start_ += runs_.stride;
    return true;
  }

  const ChannelRuns& runs_;
  const uint16_t* signatures_;
  const uint16_t wanted_;
  int64_t start_, at_;
  int64_t channels_[kAtOnce + 1];
  int64_t next_ = 0, found_ = 0;
};

// Asks for the lines of a few records, one after another: in the order of memory, so that the processor sees a stream.
class LinesAhead {
 public:
  // Behind the last of `records` one more is known, for what is asked too much.
  LinesAhead(const std::byte* const* records, int64_t record_bytes)
      : record_(records), at_(*records), end_(at_ + record_bytes), bytes_(record_bytes) {}

  template <int64_t kLines>
  void Ask() {
    if (at_ + kLines * 64 < end_) {
      OUTRIDER_UNROLLED
      for (int64_t i = 0; i < kLines; ++i) __builtin_prefetch(at_ + i * 64);
      at_ += kLines * 64;
      return;
    }
    for (int64_t i = 0; i < kLines; ++i) {
      __builtin_prefetch(at_);
      at_ += 64;
      if (at_ < end_) continue;
      at_ = *++record_;
      end_ = at_ + bytes_;
    }
  }

 private:
  const std::byte* const* record_;
  const std::byte *at_, *end_;
  const int64_t bytes_;
};

class ChannelWindow {
 public:
  ChannelWindow(const LayerView& layer, const uint16_t* signatures, uint16_t wanted, const ChannelRuns& runs)
      : layer_(layer),
        signatures_(signatures),
        record_bytes_(RecordBytes(layer.number, layer.width)),
        ahead_(Ahead(record_bytes_)),
        own_(runs, runs.first, signatures, wanted),
        later_(runs, runs.then < 0 ? runs.end : runs.then, signatures, wanted) {
    FillOwn();
    if (!runs.cold) return;
    for (int64_t i = 0; i < ahead_ && i < count_; ++i)
      for (int64_t line = 0; line < record_bytes_; line += 64) __builtin_prefetch(seen_[i].record + line);
  }

  // The next channels, at most `most` of them; 0: no more.
  int64_t Take(int64_t most = kTogether) {
    for (int64_t i = taken_; i < count_; ++i) seen_[i - taken_] = seen_[i];
    count_ -= taken_;
    own_count_ -= taken_;
    if (own_count_ == count_) FillOwn();
    taken_ = own_count_ < most ? own_count_ : most;
    if (taken_ == 0) return 0;
    Fill(later_, taken_ + ahead_);
    while (count_ < taken_ + ahead_) seen_[count_++] = seen_[0];  // is near already
    return taken_;
  }

  const Channel& operator[](int64_t i) const { return seen_[i]; }
  // What is to be prefetched while channel i is multiplied.
  const std::byte* Behind(int64_t i) const { return seen_[i + ahead_].record; }

 private:
  static constexpr int64_t kAheadBytes = 8192, kAheadMax = 8;

  static int64_t Ahead(int64_t record_bytes) {
    const int64_t records = kAheadBytes / record_bytes;
    return records < 1 ? 1 : records < kAheadMax ? records : kAheadMax;
  }

  void Fill(ChannelCursor& from, int64_t count) {
    for (int64_t c = 0; count_ < count && (c = from.Next()) >= 0; ++count_)
      seen_[count_] = {layer_.records + c * record_bytes_, signatures_[c]};
  }

  void FillOwn() {
    Fill(own_, kTogether + ahead_);
    own_count_ = count_;
  }

  const LayerView& layer_;
  const uint16_t* signatures_;
  const int64_t record_bytes_, ahead_;
  ChannelCursor own_, later_;  // later_: of the part that this thread will probably walk next
  Channel seen_[kTogether + kAheadMax];
  int64_t count_ = 0, own_count_ = 0, taken_ = 0;
};

}  // namespace
}  // namespace outrider::kernels
