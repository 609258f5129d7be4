#include "kernels/prefill.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/cpu.h"

namespace outrider::kernels {
namespace {

// One expert's share of the batch, and its tasks in each step.
struct Share {
  Segment segment;
  int64_t packed_at = 0, hidden_at = 0;
};

// A task of one step: a range of token blocks, channels or outputs of one share.
struct Task {
  const Segment* segment = nullptr;
  int64_t first = 0, last = 0;
};

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

class PrefillCall {
 public:
  PrefillCall(const ChannelStore& store, const FfnBatch& batch, const PrefillEngine& engine, Scratch& scratch,
              Workers& workers)
      : batch_(batch),
        engine_(engine),
        scratch_(scratch),
        workers_(workers),
        layer_{store.records(), store.width(), store.number()} {
    SortTokens(store);
    PlaceMemory();
  }

  void Run() {
    const int64_t width = layer_.width;
    const auto pack =
        Tasks([&](const Segment& s) { return RoundUp(s.count, engine_.token_block) / engine_.token_block; }, 1,
              Order::kExpertByExpert);
    workers_.Run(Count(pack), [&](int64_t i, int) {
      const Task& task = pack[static_cast<size_t>(i)];
      engine_.pack_tokens(*task.segment, batch_.x, width, task.first, task.last);
    });
    const auto gate_up = Tasks([](const Segment& s) { return s.active; }, engine_.channel_block, Order::kTogether);
    workers_.Run(Count(gate_up), [&](int64_t i, int worker) {
      const Task& task = gate_up[static_cast<size_t>(i)];
      engine_.gate_up(layer_, *task.segment, task.first, task.last, WorkerMemory(worker));
    });
    const auto down = Tasks([&](const Segment&) { return width; }, engine_.output_block, Order::kExpertByExpert);
    workers_.Run(Count(down), [&](int64_t i, int worker) {
      const Task& task = down[static_cast<size_t>(i)];
      engine_.down(layer_, *task.segment, task.first, task.last, batch_.y, WorkerMemory(worker));
    });
  }

 private:
  static int64_t Count(const std::vector<Task>& tasks) { return static_cast<int64_t>(tasks.size()); }
  std::byte* WorkerMemory(int worker) { return scratch_.Get(worker_at_ + worker * worker_bytes_); }

  void SortTokens(const ChannelStore& store) {
    std::vector<int64_t> ends(static_cast<size_t>(store.experts()) + 1, 0);
    for (const uint8_t e : batch_.experts) ++ends[e + size_t{1}];
    for (size_t e = 1; e < ends.size(); ++e) ends[e] += ends[e - 1];
    order_.resize(batch_.experts.size());
    std::vector<int64_t> next(ends.begin(), ends.end() - 1);
    for (size_t t = 0; t < batch_.experts.size(); ++t)
      order_[static_cast<size_t>(next[batch_.experts[t]]++)] = static_cast<int32_t>(t);
    for (int64_t e = 0; e < store.experts(); ++e) {
      const int64_t first = ends[static_cast<size_t>(e)], count = ends[static_cast<size_t>(e) + 1] - first;
      if (count == 0) continue;
      const auto channels = store.ChannelsOf(e);
      const auto active = static_cast<int64_t>(channels.size());
      shares_.push_back({{order_.data() + first, count, channels.data(), active, nullptr, nullptr}, 0, 0});
    }
  }

  void PlaceMemory() {
    scratch_.Clear();
    for (Share& share : shares_) {
      const int64_t padded = RoundUp(share.segment.count, engine_.token_block), active = share.segment.active;
      share.packed_at = scratch_.Add(padded * engine_.packed_bytes(layer_.width));
      share.hidden_at = scratch_.Add(padded * engine_.hidden_bytes(active));
      worker_bytes_ = std::max(worker_bytes_, RoundUp(engine_.scratch_bytes(layer_.width, active), kLineBytes));
    }
    worker_at_ = scratch_.Add(worker_bytes_ * workers_.threads());
    scratch_.Commit();
    for (Share& share : shares_) {
      share.segment.packed = scratch_.Get(share.packed_at);
      share.segment.hidden = scratch_.Get(share.hidden_at);
    }
  }

  // kTogether: by position first, then by expert. Experts share most channels, and then read them from a near cache one
  // after another; otherwise an expert's hidden numbers stay near.
  enum class Order { kTogether, kExpertByExpert };

  template <class Size>
  std::vector<Task> Tasks(const Size& size, int64_t block, Order order) const {
    std::vector<Task> tasks;
    for (const Share& share : shares_) {
      const int64_t end = size(share.segment);
      for (int64_t first = 0; first < end; first += block)
        tasks.push_back({&share.segment, first, std::min(first + block, end)});
    }
    if (order == Order::kTogether) std::ranges::stable_sort(tasks, {}, [](const Task& task) { return task.first; });
    return tasks;
  }

  const FfnBatch& batch_;
  const PrefillEngine& engine_;
  Scratch& scratch_;
  Workers& workers_;
  LayerView layer_;
  std::vector<int32_t> order_;  // tokens by expert, ascending inside
  std::vector<Share> shares_;
  int64_t worker_at_ = 0, worker_bytes_ = 0;
};

}  // namespace

base::Result<void> CheckExperts(const ChannelStore& store, std::span<const uint8_t> experts) {
  const auto wrong = std::ranges::find_if(experts, [&](uint8_t e) { return e >= store.experts(); });
  if (wrong == experts.end()) return {};
  return base::Fail("E_EXPERTS", "token " + std::to_string(wrong - experts.begin()) + ": expert " +
                                     std::to_string(*wrong) + ", expected less than " +
                                     std::to_string(store.experts()));
}

base::Result<void> Prefill(const ChannelStore& store, const FfnBatch& batch, const PrefillEngine& engine,
                           Scratch& scratch, Workers& workers) {
  OUTRIDER_CHECK(engine.number == store.number(), engine.name);
  if (auto checked = CheckExperts(store, batch.experts); !checked) return checked;
  PrefillCall(store, batch, engine, scratch, workers).Run();
  return {};
}

base::Result<void> Prefill(const ChannelStore& store, const FfnBatch& batch, Scratch& scratch, Workers& workers) {
  return Prefill(store, batch, *PrefillEngines(store.number()).front(), scratch, workers);
}

}  // namespace outrider::kernels
