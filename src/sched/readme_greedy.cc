#include "sched/readme_greedy.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "sched/item_order.h"
#include "sched/plan_builder.h"

namespace outrider::sched {
namespace {

class Greedy {
 public:
  explicit Greedy(const Snapshot& snapshot)
      : snapshot_(snapshot), plan_(snapshot), queues_(static_cast<size_t>(std::max<int64_t>(1, snapshot.experts))) {
    for (size_t i = 0; i < snapshot.items.size(); ++i) order_.push_back(i);
    SortByAge(snapshot, order_);
    SortByPriority(snapshot, order_);
  }

  StepPlan Run() && {
    while (true) {
      FillQueues();
      const auto longest = std::max_element(queues_.begin(), queues_.end());
      if (*longest == 0) return std::move(plan_).Finish();
      EmptyQueue(static_cast<size_t>(longest - queues_.begin()));
    }
  }

 private:
  size_t QueueOf(const ReadyItem& item, int64_t token) const {
    return item.experts.empty() ? 0 : item.experts[static_cast<size_t>(token)];
  }

  // Tokens of the item, behind those taken, that go to one expert and whose lane has room.
  int64_t RunLength(size_t index) const {
    const ReadyItem& item = snapshot_.items[index];
    const int64_t begin = plan_.Taken(index);
    const int64_t end = std::min(item.tokens, begin + plan_.Room(item.lane));
    int64_t at = begin;
    while (at < end && QueueOf(item, at) == QueueOf(item, begin)) ++at;
    return at - begin;
  }

  void FillQueues() {
    std::fill(queues_.begin(), queues_.end(), 0);
    for (const size_t index : order_) {
      const int64_t run = RunLength(index);
      if (run > 0) queues_[QueueOf(snapshot_.items[index], plan_.Taken(index))] += run;
    }
  }

  void EmptyQueue(size_t queue) {
    for (const size_t index : order_) {
      const int64_t run = RunLength(index);
      if (run > 0 && QueueOf(snapshot_.items[index], plan_.Taken(index)) == queue) plan_.Take(index, run);
    }
  }

  const Snapshot& snapshot_;
  PlanBuilder plan_;
  std::vector<size_t> order_;
  std::vector<int64_t> queues_;  // tokens, by expert
};

}  // namespace

StepPlan PlanReadmeGreedy(const Snapshot& snapshot) { return Greedy(snapshot).Run(); }

}  // namespace outrider::sched
