#pragma once
// Texts seen before, in whole KV pages: their keys and values, and for longer than those the experts of their tokens.

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve/executor.h"
#include "serve/kv_page_pool.h"

namespace outrider::serve {

struct PrefixTreeLimits {
  int64_t page_tokens = 16;
  int64_t nodes_max = 0;  // a node is one page of tokens
};

// Pages were retained for the caller, who releases them.
struct PrefixMatch {
  int64_t tokens = 0;  // of the text's beginning, whose keys and values are in kv_pages
  std::vector<int32_t> kv_pages;
  int64_t planned_tokens = 0;     // at least `tokens`: experts known, and the router's cache in route_pages
  std::vector<ExpertId> experts;  // [planned_tokens]; empty for a dense model
  std::vector<int32_t> route_pages;
};

// What a request knows of a text. Whole pages are taken, the rest is left.
struct PrefixText {
  std::span<const int32_t> ids;
  std::span<const ExpertId> experts;     // one per id; empty for a dense model
  std::span<const int32_t> kv_pages;     // of the text's beginning, complete ones; may be fewer than route_pages
  std::span<const int32_t> route_pages;  // likewise; empty for a dense model
};

// A radix tree with one page of tokens per edge. Pages are never written once they are in the tree: a text that goes on
// writes into pages of its own. Same calls give the same state. Owned and used by one thread; the pools outlive it.
class PrefixTree {
 public:
  // `route` is null for a dense model: nodes then live as long as their keys and values.
  PrefixTree(PrefixTreeLimits limits, KvPagePool& kv, KvPagePool* route);
  ~PrefixTree() { Clear(); }
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // The longest known beginning. Texts of different salts share nothing. To get logits, leave out the last token.
  PrefixMatch Match(std::string_view salt, std::span<const int32_t> ids);
  // Adds pages that are new, and keys and values where they were evicted; returns the number of new nodes. Over
  // nodes_max, the least recently used leaves make room; where nothing can, the rest of the text is left out.
  int64_t Insert(std::string_view salt, const PrefixText& text);
  // Lets go of keys and values, least recently used leaves first, until n pages of the pool became free; returns how
  // many did. Pages that a request holds stay.
  int64_t EvictKv(int64_t n);
  // Likewise for pages of the router: whole nodes go, with experts, keys and values.
  int64_t EvictRoutes(int64_t n);
  void Clear();

  int64_t Nodes() const { return nodes_count_; }
  std::vector<int32_t> HeldKvPages() const;     // for KvPagePool::Violations
  std::vector<int32_t> HeldRoutePages() const;  // likewise
  std::vector<std::string> Violations() const;  // all broken invariants

 private:
  static constexpr int32_t kNone = -1;
  struct PageLess {
    using is_transparent = void;
    bool operator()(std::span<const int32_t> a, std::span<const int32_t> b) const;
  };
  struct Node {
    int32_t parent = kNone;  // none: root of a salt, which has no page
    std::map<std::vector<int32_t>, int32_t, PageLess> children;
    std::span<const int32_t> ids;  // key in the parent's map
    std::vector<ExpertId> experts;
    int32_t kv_page = kNone;
    int32_t route_page = kNone;
    int64_t kv_children = 0;  // children with keys and values
    int64_t last_use = 0;
    std::string_view salt;  // of a root
    bool alive = false;
  };
  using UseOrder = std::set<std::pair<int64_t, int32_t>>;  // (last use, node)

  Node& At(int32_t node) { return nodes_[static_cast<size_t>(node)]; }
  const Node& At(int32_t node) const { return nodes_[static_cast<size_t>(node)]; }
  int32_t Child(int32_t node, std::span<const int32_t> ids) const;
  int32_t NewNode();
  int32_t RootOf(std::string_view salt);
  int32_t AddChild(int32_t parent, std::span<const int32_t> ids);
  bool IsRoot(int32_t node) const { return At(node).parent == kNone; }
  void Touch(int32_t node);
  void Enlist(int32_t node);  // into the two orders where it belongs
  void Unlist(int32_t node);
  void GiveKv(int32_t node, int32_t page);
  void DropKv(int32_t node);
  void Remove(int32_t leaf);
  void RemoveRootIfEmpty(int32_t root);
  bool MakeRoom();
  std::vector<std::string> NodeViolations(int32_t node) const;

  const PrefixTreeLimits limits_;
  KvPagePool& kv_;
  KvPagePool* const route_;
  std::vector<Node> nodes_;
  std::vector<int32_t> unused_;  // of nodes_
  std::map<std::string, int32_t, std::less<>> roots_;
  UseOrder kv_leaves_;           // nodes with keys and values that no child has
  UseOrder leaves_;              // nodes without children
  int32_t root_in_use_ = kNone;  // stays while Insert works below it
  int64_t clock_ = 0;            // calls of Match and Insert
  int64_t nodes_count_ = 0;
};

}  // namespace outrider::serve
