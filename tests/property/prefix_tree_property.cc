// The prefix tree against a model that keeps a flat list of beginnings and looks through all of it.

#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <string>

#include "serve/prefix_tree.h"
#include "support/below.h"

namespace outrider::serve {
namespace {

constexpr int64_t kPageTokens = 2;
using Ids = std::vector<int32_t>;

struct Entry {
  int32_t kv_page = -1;
  int32_t route_page = -1;
  std::vector<ExpertId> experts;  // of its own page
  int64_t last_use = 0;
};

class FlatModel {
 public:
  FlatModel(int64_t nodes_max, bool dense) : nodes_max_(nodes_max), dense_(dense) {}

  PrefixMatch Match(const std::string& salt, Ids ids) {
    ++clock_;
    PrefixMatch match;
    for (size_t end = kPageTokens; end <= ids.size(); end += kPageTokens) {
      const auto found = entries_.find({salt, Ids(ids.begin(), ids.begin() + static_cast<ptrdiff_t>(end))});
      if (found == entries_.end()) break;
      Entry& entry = found->second;
      entry.last_use = clock_;
      match.planned_tokens += kPageTokens;
      match.experts.insert(match.experts.end(), entry.experts.begin(), entry.experts.end());
      if (!dense_) match.route_pages.push_back(entry.route_page);
      if (entry.kv_page < 0) continue;
      match.tokens += kPageTokens;
      match.kv_pages.push_back(entry.kv_page);
    }
    return match;
  }

  void Insert(const std::string& salt, const PrefixText& text) {
    const size_t pages = std::min(text.ids.size() / kPageTokens, (dense_ ? text.kv_pages : text.route_pages).size());
    if (pages > 0) ++clock_;
    for (size_t k = 0; k < pages; ++k) {
      const Ids key(text.ids.begin(), text.ids.begin() + static_cast<ptrdiff_t>((k + 1) * kPageTokens));
      if (!entries_.contains({salt, key})) {
        if (static_cast<int64_t>(entries_.size()) >= nodes_max_) {
          const auto oldest = Oldest([&](const auto& e) { return Children(e.first, false) == 0; });
          if (oldest == entries_.end() || oldest->second.last_use == clock_) return;
          entries_.erase(oldest);
        }
        Entry entry;
        if (!dense_) {
          entry.route_page = text.route_pages[k];
          const auto experts = text.experts.subspan(k * kPageTokens, kPageTokens);
          entry.experts.assign(experts.begin(), experts.end());
        }
        entries_[{salt, key}] = entry;
      }
      Entry& entry = entries_[{salt, key}];
      entry.last_use = clock_;
      if (entry.kv_page < 0 && k < text.kv_pages.size()) entry.kv_page = text.kv_pages[k];
    }
  }

  int64_t EvictKv(int64_t n, const KvPagePool& pool) {
    for (int64_t freed = 0; freed < n; ++freed) {
      const auto oldest = Oldest([&](const auto& e) {
        return e.second.kv_page >= 0 && Children(e.first, true) == 0 && pool.References(e.second.kv_page) == 1;
      });
      if (oldest == entries_.end()) return freed;
      gone_.push_back(oldest->second.kv_page);
      oldest->second.kv_page = -1;
      if (dense_) entries_.erase(oldest);
    }
    return n;
  }

  int64_t EvictRoutes(int64_t n, const KvPagePool& pool) {
    for (int64_t freed = 0; freed < n && !dense_; ++freed) {
      const auto oldest = Oldest(
          [&](const auto& e) { return Children(e.first, false) == 0 && pool.References(e.second.route_page) == 1; });
      if (oldest == entries_.end()) return freed;
      entries_.erase(oldest);
    }
    return dense_ ? 0 : n;
  }

  int64_t Size() const { return static_cast<int64_t>(entries_.size()); }
  Ids KvPages() const {
    Ids pages;
    for (const auto& [key, entry] : entries_) {
      if (entry.kv_page >= 0) pages.push_back(entry.kv_page);
    }
    std::sort(pages.begin(), pages.end());
    return pages;
  }

 private:
  using Key = std::pair<std::string, Ids>;
  using Entries = std::map<Key, Entry>;

  int64_t Children(const Key& key, bool with_kv) const {
    return std::count_if(entries_.begin(), entries_.end(), [&](const auto& e) {
      return e.first.first == key.first && e.first.second.size() == key.second.size() + kPageTokens &&
             std::equal(key.second.begin(), key.second.end(), e.first.second.begin()) &&
             (!with_kv || e.second.kv_page >= 0);
    });
  }

  template <class Candidate>
  Entries::iterator Oldest(Candidate is_candidate) {
    auto oldest = entries_.end();
    for (auto it = entries_.begin(); it != entries_.end(); ++it) {
      if (!is_candidate(*it)) continue;
      if (oldest == entries_.end() || it->second.last_use < oldest->second.last_use) oldest = it;
    }
    return oldest;
  }

  const int64_t nodes_max_;
  const bool dense_;
  Entries entries_;
  Ids gone_;
  int64_t clock_ = 0;
};

// Short texts of few tokens, so that many share a beginning.
Ids AnyText() {
  Ids ids;
  for (uint32_t tokens = Below(11); tokens > 0; --tokens) ids.push_back(static_cast<int32_t>(Below(3) / 2));
  return ids;
}

class Comparison {
 public:
  Comparison(int64_t nodes_max, bool dense)
      : dense_(dense), tree_({kPageTokens, nodes_max}, kv_, dense ? nullptr : &route_), model_(nodes_max, dense) {}
  ~Comparison() {
    for (const PrefixMatch& match : in_use_) Release(match);
  }

  void AnyCall() {
    const std::string salt = Below(4) == 0 ? "b" : "a";
    const uint32_t kind = Below(8);
    if (kind < 3) return Insert(salt, AnyText());
    if (kind < 5) return Match(salt, AnyText());
    if (kind == 5 && !in_use_.empty()) return Finish(Below(static_cast<uint32_t>(in_use_.size())));
    const int64_t n = 1 + Below(4);
    if (kind == 6) {
      const int64_t expected = model_.EvictKv(n, kv_);
      RC_ASSERT(tree_.EvictKv(n) == expected);
    } else {
      const int64_t expected = model_.EvictRoutes(n, route_);
      RC_ASSERT(tree_.EvictRoutes(n) == expected);
    }
  }

  void Check() {
    RC_ASSERT(tree_.Violations() == std::vector<std::string>{});
    RC_ASSERT(tree_.Nodes() == model_.Size());
    Ids kv_pages = tree_.HeldKvPages(), route_pages = tree_.HeldRoutePages();
    std::sort(kv_pages.begin(), kv_pages.end());
    RC_ASSERT(kv_pages == model_.KvPages());
    for (const PrefixMatch& match : in_use_) {
      kv_pages.insert(kv_pages.end(), match.kv_pages.begin(), match.kv_pages.end());
      route_pages.insert(route_pages.end(), match.route_pages.begin(), match.route_pages.end());
    }
    RC_ASSERT(kv_.Violations(kv_pages) == std::vector<std::string>{});
    RC_ASSERT(route_.Violations(route_pages) == std::vector<std::string>{});
  }

 private:
  void Insert(const std::string& salt, const Ids& ids) {
    const auto pages = static_cast<int64_t>(ids.size()) / kPageTokens;
    Ids kv_pages, route_pages;
    RC_ASSERT(kv_.Alloc(pages, kv_pages).has_value());
    RC_ASSERT(route_.Alloc(pages, route_pages).has_value());
    std::vector<ExpertId> experts;
    for (size_t i = 0; i < ids.size() && !dense_; ++i) experts.push_back(static_cast<ExpertId>(i % 5));
    const auto computed = std::span<const int32_t>(kv_pages).first(Below(static_cast<uint32_t>(pages) + 1));
    const PrefixText text{ids, experts, computed, dense_ ? std::span<const int32_t>() : route_pages};
    const int64_t before = tree_.Nodes();
    const int64_t added = tree_.Insert(salt, text);
    model_.Insert(salt, text);
    RC_ASSERT(added >= tree_.Nodes() - before);
    kv_.Release(kv_pages);
    route_.Release(route_pages);
  }

  void Match(const std::string& salt, const Ids& ids) {
    const PrefixMatch match = tree_.Match(salt, ids);
    const PrefixMatch expected = model_.Match(salt, ids);
    in_use_.push_back(match);
    RC_ASSERT(match.tokens == expected.tokens);
    RC_ASSERT(match.planned_tokens == expected.planned_tokens);
    RC_ASSERT(match.experts == expected.experts);
    RC_ASSERT(match.kv_pages == expected.kv_pages);
    RC_ASSERT(match.route_pages == expected.route_pages);
  }

  void Finish(size_t which) {
    Release(in_use_[which]);
    in_use_.erase(in_use_.begin() + static_cast<ptrdiff_t>(which));
  }

  void Release(const PrefixMatch& match) {
    kv_.Release(match.kv_pages);
    route_.Release(match.route_pages);
  }

  const bool dense_;
  KvPagePool kv_{64};
  KvPagePool route_{64};
  PrefixTree tree_;
  FlatModel model_;
  std::vector<PrefixMatch> in_use_;
};

RC_GTEST_PROP(PrefixTreeProperty, AgreesWithAFlatModel, ()) {
  Comparison comparison(1 + Below(12), Below(3) == 0);
  for (uint32_t calls = Below(40); calls > 0; --calls) {
    comparison.AnyCall();
    comparison.Check();
  }
}

}  // namespace
}  // namespace outrider::serve
