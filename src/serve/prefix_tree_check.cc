// What tests and debug builds ask of a prefix tree.

#include <algorithm>
#include <utility>

#include "serve/prefix_tree.h"

namespace outrider::serve {

std::vector<int32_t> PrefixTree::HeldKvPages() const {
  std::vector<int32_t> held;
  for (const Node& node : nodes_) {
    if (node.kv_page != kNone) held.push_back(node.kv_page);
  }
  return held;
}

std::vector<int32_t> PrefixTree::HeldRoutePages() const {
  std::vector<int32_t> held;
  for (const Node& node : nodes_) {
    if (node.route_page != kNone) held.push_back(node.route_page);
  }
  return held;
}

std::vector<std::string> PrefixTree::NodeViolations(int32_t index) const {
  const Node& node = At(index);
  std::vector<std::string> found;
  const auto expect = [&](bool holds, const char* what) {
    if (!holds) found.push_back("node " + std::to_string(index) + ": " + what);
  };
  int64_t kv_children = 0;
  for (const auto& [ids, child] : node.children) {
    expect(At(child).alive && At(child).parent == index, "a child does not know it");
    expect(At(child).ids.data() == ids.data(), "a child has lost its tokens");
    kv_children += At(child).kv_page != kNone ? 1 : 0;
  }
  expect(node.kv_children == kv_children, "children with keys and values are miscounted");
  if (IsRoot(index)) {
    expect(node.kv_page == kNone && node.route_page == kNone, "a root holds pages");
    expect(!node.children.empty(), "a root without children");
    const auto root = roots_.find(node.salt);
    expect(root != roots_.end() && root->second == index, "a root that its salt does not lead to");
    return found;
  }
  const Node& parent = At(node.parent);
  expect(parent.alive, "its parent is gone");
  expect(IsRoot(node.parent) || parent.last_use >= node.last_use, "used later than its parent");
  expect(node.kv_page == kNone || IsRoot(node.parent) || parent.kv_page != kNone, "keys and values behind a gap");
  expect(static_cast<int64_t>(node.ids.size()) == limits_.page_tokens, "not a whole page of tokens");
  expect(node.experts.size() == (route_ ? node.ids.size() : 0), "not an expert per token");
  expect((node.route_page != kNone) == (route_ != nullptr), "pages of the router do not fit the model");
  expect(route_ != nullptr || node.kv_page != kNone, "a node of a dense model without keys and values");
  expect(leaves_.contains({node.last_use, index}) == node.children.empty(), "its place among the leaves is wrong");
  expect(kv_leaves_.contains({node.last_use, index}) == (node.kv_page != kNone && kv_children == 0),
         "its place among the leaves with keys and values is wrong");
  return found;
}

std::vector<std::string> PrefixTree::Violations() const {
  std::vector<std::string> found;
  const auto expect = [&](bool holds, const std::string& what) {
    if (!holds) found.push_back(what);
  };
  int64_t nodes = 0, leaves = 0, roots = 0;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    if (!nodes_[i].alive) continue;
    const auto index = static_cast<int32_t>(i);
    (IsRoot(index) ? roots : nodes) += 1;
    leaves += !IsRoot(index) && nodes_[i].children.empty() ? 1 : 0;
    for (std::string& violation : NodeViolations(index)) found.push_back(std::move(violation));
  }
  expect(nodes == nodes_count_, std::to_string(nodes) + " nodes, counted " + std::to_string(nodes_count_));
  expect(nodes <= limits_.nodes_max, std::to_string(nodes) + " nodes, over " + std::to_string(limits_.nodes_max));
  expect(roots == static_cast<int64_t>(roots_.size()), "a salt without a root, or a root without a salt");
  expect(leaves == static_cast<int64_t>(leaves_.size()), "a leaf that is none");
  expect(unused_.size() + static_cast<size_t>(nodes + roots) == nodes_.size(), "a node is neither alive nor unused");
  for (auto pages : {HeldKvPages(), HeldRoutePages()}) {
    std::sort(pages.begin(), pages.end());
    expect(std::adjacent_find(pages.begin(), pages.end()) == pages.end(), "two nodes hold one page");
  }
  return found;
}

}  // namespace outrider::serve
