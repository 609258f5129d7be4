#include "trace/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/trace_text.h"

namespace outrider::trace {
namespace {

using testing::HasSubstr;

constexpr const char* kGraphText =
    "graph nodes_max 200000 paths_max 256\n"
    "start visits 2 last 2 to %1:2\n"
    "%1 = aten::mm#0(p0, feed) outputs 1 level 1 visits 2 last 2 to %3:1, %2:1\n"
    "%2 = aten::relu#1(%1.0) outputs 1 level 2 visits 1 last 1 to %4:1\n"
    "%3 = \"a \\\"b\\\" \\\\\"#2(%1.0) outputs 1 level 2 visits 1 last 2 to %4:1\n"
    "%4 = aten::sum#3(%2.0|%3.0, none) outputs 1 level 3 visits 2 last 2 fetched end\n";

constexpr const char* kTracesText =
    "trace\n"
    "%0 = aten::mm#0(p0, feed) outputs 2\n"
    "%1 = aten::relu#1(%0.1) outputs 1 fetched\n"
    "trace\n"
    "trace\n"
    "%0 = aten::empty#5() outputs 1\n";

TEST(GraphText, PrintsWhatItParsed) {
  const ParsedGraph parsed = ValueOrThrow(ParseGraph(kGraphText));
  EXPECT_EQ(PrintGraph(parsed.graph, NamesFrom(parsed.names)), kGraphText);
  EXPECT_EQ(parsed.graph.NodeCount(), 5u);
  EXPECT_EQ(parsed.names.at(SignatureId{2}), "a \"b\" \\");
  EXPECT_TRUE(parsed.graph.At(NodeId{4}).inputs[0].IsPhi());
}

TEST(GraphText, AParsedGraphGoesOnGrowing) {
  ParsedGraph parsed = ValueOrThrow(ParseGraph(kGraphText));
  Trace known =
      TraceFrom("%0 = mm#0(p0, feed) outputs 1\n %1 = relu#1(%0.0) outputs 1\n %2 = sum#3(%1.0, none) outputs 1");
  EXPECT_TRUE(parsed.graph.Merge(known).covered);
  known[1].signature = SignatureId{9};
  const MergeResult fresh = parsed.graph.Merge(known);
  EXPECT_EQ(fresh.new_nodes, 1u);
  EXPECT_EQ(fresh.nodes, (std::vector{NodeId{1}, NodeId{5}, NodeId{4}}));
}

TEST(GraphText, KeepsGapsBetweenIds) {
  const ParsedGraph parsed =
      ValueOrThrow(ParseGraph("graph nodes_max 9 paths_max 2 start visits 1 last 1 to %7:1\n"
                              "%7 = op#0() outputs 0 level 1 visits 1 last 1 end // the others were evicted"));
  EXPECT_EQ(parsed.graph.NodeCount(), 2u);
  EXPECT_FALSE(parsed.graph.At(NodeId{3}).alive);
  EXPECT_EQ(parsed.graph.GraphLimits().nodes_max, 9u);
}

TEST(TracesText, PrintsWhatItParsed) {
  const ParsedTraces parsed = ValueOrThrow(ParseTraces(kTracesText));
  ASSERT_EQ(parsed.traces.size(), 3u);
  EXPECT_TRUE(parsed.traces[0][1].fetched);
  EXPECT_TRUE(parsed.traces[1].empty());
  EXPECT_EQ(PrintTraces(parsed.traces, NamesFrom(parsed.names)), kTracesText);
}

struct BadText {
  std::string name;
  std::string text;
  std::string reason;
};

std::string GraphOf(const std::string& start, const std::string& rest) {
  return "graph nodes_max 9 paths_max 9\nstart visits 0 last 0" + start + "\n" + rest;
}

class BadGraphText : public testing::TestWithParam<BadText> {};

TEST_P(BadGraphText, IsRefusedWithAReason) {
  const auto parsed = ParseGraph(GetParam().text);
  ASSERT_FALSE(parsed.has_value());
  EXPECT_EQ(parsed.error().code, "PARSE");
  EXPECT_THAT(parsed.error().message, HasSubstr(GetParam().reason));
}

const std::string kOp = "%1 = op#0() outputs 1 level 1 visits 0 last 0 end\n";

INSTANTIATE_TEST_SUITE_P(
    Texts, BadGraphText,
    testing::Values(
        BadText{"Empty", "", "line 1: expected 'graph'"},
        BadText{"ZeroLimit", "graph nodes_max 0 paths_max 1 start visits 0 last 0", "limits must be positive"},
        BadText{"NoStart", "graph nodes_max 1 paths_max 1\n%1 = op#0()", "line 2: expected 'start'"},
        BadText{"Garbage", GraphOf("", "hello"), "line 3: expected '%'"},
        BadText{"TwoNames", GraphOf("", kOp + "%2 = other#0() outputs 1"), "signature 0 has two names"},
        BadText{"SameIdTwice", GraphOf(" to %1:0", kOp + kOp), "%1 is there twice"},
        BadText{"StartAgain", GraphOf("", "%0 = op#0() outputs 1 level 1 visits 0 last 0 end"), "%0 is there twice"},
        BadText{"EdgeToNowhere", GraphOf(" to %8:0", kOp), "no live node"},
        BadText{"Unreachable", GraphOf("", kOp), "cannot be reached"},
        BadText{"NumberTooLarge", GraphOf(" to %99999999999999999999:0", kOp), "number exceeds"},
        BadText{"NameWithoutEnd", GraphOf("", "%1 = \"op#0() outputs 1\n"), "quoted name does not end"},
        BadText{"NoInput", GraphOf("", "%1 = op#0(what) outputs 1"), "expected an input"},
        BadText{"NoNumber", GraphOf("", "%1 = op#0(%x) outputs 1"), "expected a number"},
        BadText{"LongWord", GraphOf("", "%1 = op#0(feeds) outputs 1"), "expected an input"}),
    [](const auto& info) { return info.param.name; });

TEST(TracesText, ForwardReferencesAreRefused) {
  const auto parsed = ParseTraces("trace\n%0 = op#0(%0.0) outputs 1");
  ASSERT_FALSE(parsed.has_value());
  EXPECT_THAT(parsed.error().message, HasSubstr("line 2: %0.0 is not known yet"));
}

TEST(TracesText, MistakesAreRefused) {
  EXPECT_FALSE(ParseTraces("%0 = op#0() outputs 1").has_value()) << "no trace was opened";
  EXPECT_FALSE(ParseTraces("trace %1 = op#0() outputs 1").has_value()) << "ops count from 0";
  EXPECT_FALSE(ParseTraces("trace %0 = op#0(p1|p2) outputs 1").has_value()) << "a trace has no phis";
  EXPECT_FALSE(ParseTraces("trace %0 = op#0(p1) outputs 70000").has_value()) << "too many outputs";
}

}  // namespace
}  // namespace outrider::trace
