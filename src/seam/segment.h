#pragma once
// A launched range of a plan as a sequence of device graphs and single ops.
//
// A graph reads and writes fixed addresses. What it takes from outside is one of:
//   fixed    state of the program, and values of earlier ranges: the address must be the captured one
//   static   inputs of the step, and results of single ops of this range: copied into a buffer of the segment first
// What it produces stays in the captures' memory as long as the range held it when it was captured.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "seam/backend.h"
#include "seam/outer_part.h"

namespace outrider::seam {

class Segment {
 public:
  explicit Segment(const OuterPart& part);

  // A launch may write into buffers that values of earlier steps live in.
  bool MayLaunch() const { return state_ == State::kReady || (state_ == State::kCounting && runs_ >= kRunsBefore); }
  // The last run has captured something.
  bool JustCaptured() const { return !just_captured_.empty(); }
  // Gives the graphs up; the next run captures. Due when a range that comes before this one has been captured later: what
  // that one hands on may lie where these graphs, when they were captured, left memory free and write in passing.
  void CaptureAgain();
  // True: the range has run. False: the caller runs it op by op. Sets `in_buffer` for slots that live in graph memory.
  bool Run(OuterPart& part, GraphMemory& memory, std::vector<char>& in_buffer);

 private:
  enum class State { kCounting, kReady, kRefused };
  static constexpr int kRunsBefore = 2;  // op by op, before the first capture

  struct Piece {
    int first = 0, end = 0;
    bool captured = false;  // wanted as a graph
    std::unique_ptr<DeviceGraph> graph;
    std::vector<int> statics;                          // indices into statics_ that must be filled before
    std::vector<std::pair<int, c10::Storage>> results; // slots it produces, as they are after it
  };
  struct Static {
    int slot = -1;
    c10::Storage buffer;
  };

  void Observe(const OuterPart& part);
  bool CanCapture(const OuterPart& part, int index) const;
  void CutIntoPieces(const OuterPart& part);
  void FindOperands(const OuterPart& part);
  bool Fits(const OuterPart& part) const;
  bool Capture(OuterPart& part, GraphMemory& memory);
  void CapturePiece(OuterPart& part, GraphMemory& memory, Piece& piece);
  void GiveUp(OuterPart& part, const std::string& what);
  void KeepResults(OuterPart& part);
  void Launch(OuterPart& part);
  void AddStatic(int slot, std::vector<int>& needed_by);
  void FillStatics(OuterPart& part, const std::vector<int>& indices);
  void Refuse(OuterPart& part, const std::string& why);
  void CountOps(OuterPart& part) const;

  State state_ = State::kCounting;
  std::vector<int> just_captured_;  // slots that captures of the last run made, even if a later one failed
  int runs_ = 0;
  int misses_ = 0;      // launches in a row that did not fit
  int recaptures_ = 0;
  int failures_ = 0;    // captures that raised
  std::vector<int> barred_;  // ops that cannot be captured
  std::vector<Piece> pieces_;
  std::vector<Static> statics_;
  std::vector<int> leaving_;  // statics that later ranges read and no graph of this one
  std::vector<std::pair<int, const void*>> fixed_;    // slot -> captured address
  std::vector<std::pair<int, const void*>> observed_; // inputs that are written: addresses of the last run ...
  std::vector<char> loose_;                           // ... per slot: they changed, so no graph may use them
  std::vector<char> wanted_;                          // per slot: the program held it after some run
  std::vector<char> produced_;                        // per slot: a graph of this range makes it
  std::vector<char> held_;                            // ... and its bytes stay until the next launch
};

}  // namespace outrider::seam
