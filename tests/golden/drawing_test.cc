// Small graphs as text, with the drawings they must give. `<name>.traces` is merged into a graph; `<name>.graph`,
// `<name>.dot` and `<name>.mmd` are what it prints. OUTRIDER_UPDATE_GOLDEN=1 writes them anew.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "support/trace_text.h"
#include "trace/dot.h"
#include "trace/mermaid.h"

namespace outrider::trace {
namespace {

namespace fs = std::filesystem;

fs::path Folder() { return fs::path(OUTRIDER_TEST_DATA_DIR) / "graphs"; }

std::vector<std::string> Cases() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(Folder())) {
    if (entry.path().extension() == ".traces") names.push_back(entry.path().stem());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void ExpectGolden(const std::string& name, const std::string& extension, const std::string& text) {
  const fs::path path = Folder() / (name + extension);
  const char* update = std::getenv("OUTRIDER_UPDATE_GOLDEN");
  if (update != nullptr && std::string(update) == "1") std::ofstream(path) << text;
  EXPECT_EQ(ReadFile(path), text) << "differs from " << path;
}

class Golden : public testing::TestWithParam<std::string> {};

TEST(GoldenFolder, HasCases) { EXPECT_GE(Cases().size(), 5u); }

TEST_P(Golden, PrintsAsRecorded) {
  const ParsedTraces parsed = ValueOrThrow(ParseTraces(ReadFile(Folder() / (GetParam() + ".traces"))));
  TraceGraph graph;
  for (const Trace& trace : parsed.traces) graph.Merge(trace);
  const NameOf name_of = NamesFrom(parsed.names);
  ExpectGolden(GetParam(), ".graph", PrintGraph(graph, name_of));
  ExpectGolden(GetParam(), ".dot", ToDot(graph, name_of));
  ExpectGolden(GetParam(), ".mmd", ToMermaid(graph, name_of));

  const ParsedGraph again = ValueOrThrow(ParseGraph(ReadFile(Folder() / (GetParam() + ".graph"))));
  EXPECT_EQ(ToDot(again.graph, NamesFrom(again.names)), ReadFile(Folder() / (GetParam() + ".dot")));
}

INSTANTIATE_TEST_SUITE_P(Graphs, Golden, testing::ValuesIn(Cases()), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace outrider::trace
