// The checks of the text fuzzer on a fixed number of damaged texts, for builds without libFuzzer.

#include <gtest/gtest.h>

#include <random>

#include "support/text_check.h"

namespace outrider::trace {
namespace {

constexpr int kTexts = 5'000;

constexpr std::string_view kGraph =
    "graph nodes_max 20 paths_max 5\nstart visits 2 last 2 to %1:2\n"
    "%1 = mm#0(p0, feed) outputs 1 level 1 visits 2 last 2 to %2:1, %3:1\n"
    "%2 = relu#1(%1.0) outputs 1 level 2 visits 1 last 1 to %4:1\n"
    "%3 = \"a \\\"b\\\"\"#2(%1.0) outputs 1 level 2 visits 1 last 2 end to %4:1\n"
    "%4 = sum#3(%2.0|%3.0, none) outputs 1 level 3 visits 2 last 2 fetched end\n";
constexpr std::string_view kTraces =
    "trace\n%0 = mm#0(p0, feed) outputs 1\n%1 = relu#1(%0.0) outputs 1 fetched\n"
    "trace\n%0 = mm#0(p0, feed) outputs 1\n%1 = neg#2(%0.0) outputs 1\n%2 = relu#1(%1.0) outputs 1\n";

class Mutator {
 public:
  std::string operator()(std::string text) {
    for (size_t edits = 1 + Below(3); edits > 0; --edits) Edit(text);
    return text;
  }

 private:
  size_t Below(size_t count) { return std::uniform_int_distribution<size_t>(0, count - 1)(random_); }

  void Edit(std::string& text) {
    static constexpr std::string_view kPieces = "%0123456789.,|()#=:\" \n/pfeednoneto";
    if (text.empty()) return;
    const size_t at = Below(text.size());
    switch (Below(4)) {
      case 0:
        text.erase(at, 1 + Below(8));
        break;
      case 1:
        text.insert(at, 1, kPieces[Below(kPieces.size())]);
        break;
      case 2:
        text[at] = kPieces[Below(kPieces.size())];
        break;
      default:
        text.insert(at, text.substr(Below(text.size()), 1 + Below(40)));
    }
  }

  std::mt19937_64 random_{20250101};
};

TEST(TextMutation, DamagedTextsAreRefusedOrSound) {
  Mutator mutate;
  int accepted = 0;
  for (int i = 0; i < kTexts; ++i) {
    const std::string graph = mutate(std::string(kGraph));
    const std::string traces = mutate(std::string(kTraces));
    ASSERT_NO_THROW(CheckGraphText(graph)) << graph;
    ASSERT_NO_THROW(CheckTracesText(traces)) << traces;
    accepted += ParseGraph(graph).has_value() + ParseTraces(traces).has_value();
  }
  EXPECT_GT(accepted, kTexts / 50) << "too few texts come through to check what follows the parser";
  EXPECT_LT(accepted, 2 * kTexts);
}

}  // namespace
}  // namespace outrider::trace
