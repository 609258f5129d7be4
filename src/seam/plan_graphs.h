#pragma once
// The executable forms of one plan on a device with graphs: per launched range a Segment, all in one private memory.
// Graph runner only, but for the destructor (imperative thread, queue idle).
//
// Values that the program still holds when a range is launched again live in buffers which that launch overwrites; they
// are *lent*, and get bytes of their own first.

#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "seam/backend.h"
#include "seam/segment.h"

namespace outrider::seam {

class PlanGraphs {
 public:
  explicit PlanGraphs(c10::Device device) : device_(device) {}
  ~PlanGraphs();

  // Before the inputs of `part` are taken: nothing of an earlier step may still live where this part is about to write.
  void Prepare(OuterPart& part);
  // True: the range has run, as far as possible inside graphs.
  bool Run(OuterPart& part);
  // True: the storage of `slot` is a graph's buffer, and `record` has it until the next launch.
  bool Lend(int slot, const RecordPtr& record, const OuterTable& table);
  // Gives captured graphs and their memory back. Imperative thread, queue idle.
  void Clear();

 private:
  struct Lent {
    uint64_t step;
    RecordPtr record;
  };
  static bool GiveBytes(Lent& lent);
  Segment* Find(const OuterPart& part);

  c10::Device device_;
  std::unique_ptr<GraphMemory> memory_;
  std::map<std::tuple<int, int, bool>, std::unique_ptr<Segment>> segments_;  // (first op, end op, commit)
  std::vector<Lent> lent_;
  uint64_t step_ = 0;
  std::vector<char> in_buffer_;  // per slot: it lives in a graph's buffer in the current step
};

}  // namespace outrider::seam
