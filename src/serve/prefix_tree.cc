#include "serve/prefix_tree.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace outrider::serve {

bool PrefixTree::PageLess::operator()(std::span<const int32_t> a, std::span<const int32_t> b) const {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

PrefixTree::PrefixTree(PrefixTreeLimits limits, KvPagePool& kv, KvPagePool* route)
    : limits_(limits), kv_(kv), route_(route) {
  OUTRIDER_CHECK(limits.page_tokens > 0, "pages of ", limits.page_tokens, " tokens");
  OUTRIDER_CHECK(limits.nodes_max >= 0, limits.nodes_max, " nodes at most");
}

PrefixMatch PrefixTree::Match(std::string_view salt, std::span<const int32_t> ids) {
  ++clock_;
  PrefixMatch match;
  const auto root = roots_.find(salt);
  if (root == roots_.end()) return match;
  const auto page = static_cast<size_t>(limits_.page_tokens);
  int32_t at = root->second;
  for (; ids.size() >= page; ids = ids.subspan(page)) {
    at = Child(at, ids.first(page));
    if (at == kNone) break;
    Touch(at);
    const Node& node = At(at);
    match.planned_tokens += limits_.page_tokens;
    match.experts.insert(match.experts.end(), node.experts.begin(), node.experts.end());
    if (route_ != nullptr) match.route_pages.push_back(node.route_page);
    if (node.kv_page == kNone) continue;
    match.tokens += limits_.page_tokens;
    match.kv_pages.push_back(node.kv_page);
  }
  kv_.Retain(match.kv_pages);
  if (route_ != nullptr) route_->Retain(match.route_pages);
  return match;
}

int64_t PrefixTree::Insert(std::string_view salt, const PrefixText& text) {
  const auto page = static_cast<size_t>(limits_.page_tokens);
  const size_t pages = std::min(text.ids.size() / page, (route_ ? text.route_pages : text.kv_pages).size());
  OUTRIDER_CHECK(route_ == nullptr || text.experts.size() >= pages * page, text.experts.size(), " experts of ",
                 pages * page, " tokens");
  if (pages == 0) return 0;
  ++clock_;
  int64_t added = 0;
  root_in_use_ = RootOf(salt);
  int32_t at = root_in_use_;
  for (size_t k = 0; k < pages; ++k) {
    const auto ids = text.ids.subspan(k * page, page);
    int32_t next = Child(at, ids);
    if (next == kNone) {
      if (!MakeRoom()) break;
      next = AddChild(at, ids);
      ++added;
      if (route_ != nullptr) {
        const auto experts = text.experts.subspan(k * page, page);
        At(next).experts.assign(experts.begin(), experts.end());
        At(next).route_page = text.route_pages[k];
        route_->Retain(text.route_pages.subspan(k, 1));
      }
    }
    Touch(next);
    if (At(next).kv_page == kNone && k < text.kv_pages.size()) GiveKv(next, text.kv_pages[k]);
    at = next;
  }
  const int32_t root = std::exchange(root_in_use_, kNone);
  RemoveRootIfEmpty(root);
  return added;
}

int64_t PrefixTree::EvictKv(int64_t n) {
  int64_t freed = 0;
  for (auto it = kv_leaves_.begin(); it != kv_leaves_.end() && freed < n;) {
    const int32_t node = it->second;
    const int32_t parent = At(node).parent;
    const auto next = std::next(it) == kv_leaves_.end() ? std::pair(clock_ + 1, kNone) : *std::next(it);
    if (kv_.References(At(node).kv_page) == 1) {
      ++freed;
      if (route_ == nullptr) {
        // Without keys and values below it, a node of a dense model has no children.
        Remove(node);
      } else {
        DropKv(node);
      }
      // The parent may have become a candidate, older than the next one.
      const auto above = kv_leaves_.find({At(parent).last_use, parent});
      it = above != kv_leaves_.end() && *above < next ? above : kv_leaves_.lower_bound(next);
    } else {
      ++it;
    }
  }
  return freed;
}

int64_t PrefixTree::EvictRoutes(int64_t n) {
  if (route_ == nullptr) return 0;
  int64_t freed = 0;
  for (auto it = leaves_.begin(); it != leaves_.end() && freed < n;) {
    const int32_t node = it->second;
    const int32_t parent = At(node).parent;
    const auto next = std::next(it) == leaves_.end() ? std::pair(clock_ + 1, kNone) : *std::next(it);
    if (route_->References(At(node).route_page) == 1) {
      ++freed;
      Remove(node);
      const auto above = leaves_.find({At(parent).last_use, parent});
      it = above != leaves_.end() && *above < next ? above : leaves_.lower_bound(next);
    } else {
      ++it;
    }
  }
  return freed;
}

void PrefixTree::Clear() {
  while (!leaves_.empty()) Remove(leaves_.begin()->second);
}

int32_t PrefixTree::Child(int32_t node, std::span<const int32_t> ids) const {
  const auto found = At(node).children.find(ids);
  return found == At(node).children.end() ? kNone : found->second;
}

int32_t PrefixTree::NewNode() {
  if (unused_.empty()) {
    nodes_.emplace_back();
    unused_.push_back(static_cast<int32_t>(nodes_.size() - 1));
  }
  const int32_t node = unused_.back();
  unused_.pop_back();
  At(node) = Node{};
  At(node).alive = true;
  return node;
}

int32_t PrefixTree::RootOf(std::string_view salt) {
  const auto found = roots_.find(salt);
  if (found != roots_.end()) return found->second;
  const auto root = roots_.emplace(salt, NewNode()).first;
  At(root->second).salt = root->first;
  return root->second;
}

int32_t PrefixTree::AddChild(int32_t parent, std::span<const int32_t> ids) {
  const int32_t node = NewNode();
  Unlist(parent);
  const auto edge = At(parent).children.emplace(std::vector<int32_t>(ids.begin(), ids.end()), node).first;
  Enlist(parent);
  At(node).parent = parent;
  At(node).ids = edge->first;
  Enlist(node);
  ++nodes_count_;
  return node;
}

void PrefixTree::Touch(int32_t node) {
  Unlist(node);
  At(node).last_use = clock_;
  Enlist(node);
}

void PrefixTree::Enlist(int32_t index) {
  const Node& node = At(index);
  if (IsRoot(index)) return;
  if (node.children.empty()) leaves_.emplace(node.last_use, index);
  if (node.kv_page != kNone && node.kv_children == 0) kv_leaves_.emplace(node.last_use, index);
}

void PrefixTree::Unlist(int32_t index) {
  leaves_.erase({At(index).last_use, index});
  kv_leaves_.erase({At(index).last_use, index});
}

void PrefixTree::GiveKv(int32_t index, int32_t page) {
  const int32_t parent = At(index).parent;
  OUTRIDER_CHECK(IsRoot(parent) || At(parent).kv_page != kNone, "keys and values behind a gap");
  kv_.Retain({&page, 1});
  Unlist(index);
  Unlist(parent);
  At(index).kv_page = page;
  ++At(parent).kv_children;
  Enlist(index);
  Enlist(parent);
}

void PrefixTree::DropKv(int32_t index) {
  const int32_t parent = At(index).parent;
  kv_.Release({&At(index).kv_page, 1});
  Unlist(index);
  Unlist(parent);
  At(index).kv_page = kNone;
  --At(parent).kv_children;
  Enlist(index);
  Enlist(parent);
}

void PrefixTree::Remove(int32_t leaf) {
  const int32_t parent = At(leaf).parent;
  if (At(leaf).kv_page != kNone) DropKv(leaf);
  if (route_ != nullptr) route_->Release({&At(leaf).route_page, 1});
  Unlist(leaf);
  Unlist(parent);
  At(parent).children.erase(At(parent).children.find(At(leaf).ids));
  Enlist(parent);
  At(leaf) = Node{};
  unused_.push_back(leaf);
  --nodes_count_;
  RemoveRootIfEmpty(parent);
}

void PrefixTree::RemoveRootIfEmpty(int32_t root) {
  if (!IsRoot(root) || !At(root).children.empty() || root == root_in_use_) return;
  roots_.erase(roots_.find(At(root).salt));
  At(root) = Node{};
  unused_.push_back(root);
}

// Whether one more node fits, after the least recently used leaf went if need be. The text under way stays.
bool PrefixTree::MakeRoom() {
  if (nodes_count_ < limits_.nodes_max) return true;
  if (leaves_.empty() || leaves_.begin()->first == clock_) return false;
  Remove(leaves_.begin()->second);
  return true;
}

}  // namespace outrider::serve
