#pragma once
// The orders in which policies look at ready items: indices into Snapshot::items.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sched/step_plan.h"

namespace outrider::sched {

inline std::vector<size_t> ItemsOf(const Snapshot& snapshot, Lane lane) {
  std::vector<size_t> found;
  for (size_t i = 0; i < snapshot.items.size(); ++i) {
    if (snapshot.items[i].lane == lane) found.push_back(i);
  }
  return found;
}

// Oldest first; ties by request, as the items are.
inline void SortByAge(const Snapshot& snapshot, std::vector<size_t>& items) {
  std::stable_sort(items.begin(), items.end(),
                   [&](size_t a, size_t b) { return snapshot.items[a].ready_since < snapshot.items[b].ready_since; });
}

// The higher priority first; the order of equals stays.
inline void SortByPriority(const Snapshot& snapshot, std::vector<size_t>& items) {
  std::stable_sort(items.begin(), items.end(),
                   [&](size_t a, size_t b) { return snapshot.items[a].priority > snapshot.items[b].priority; });
}

// Decode items: higher priority first, then oldest.
inline std::vector<size_t> DecodeOrder(const Snapshot& snapshot) {
  std::vector<size_t> items = ItemsOf(snapshot, Lane::kDecode);
  SortByAge(snapshot, items);
  SortByPriority(snapshot, items);
  return items;
}

// Prompts: higher priority first, then in order of arrival.
inline std::vector<size_t> PrefillOrder(const Snapshot& snapshot) {
  std::vector<size_t> items = ItemsOf(snapshot, Lane::kPrefill);
  SortByPriority(snapshot, items);
  return items;
}

}  // namespace outrider::sched
