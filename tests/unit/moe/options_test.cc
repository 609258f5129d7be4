#include "moe/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "moe/token_data.h"

namespace outrider::moe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string Complaint(const char* json) {
  const auto options = ParseOptions(json);
  return options ? "" : options.error().code + ": " + options.error().message;
}

TEST(Options, PresetsAndNamedFields) {
  EXPECT_EQ(ParseOptions("{}")->experts_kind, "coverage");
  const Options readme = ParseOptions(R"({"preset": "readme", "seed": 4, "router.rate": 1})").value();
  EXPECT_EQ(readme.experts_kind, "published");
  EXPECT_EQ(readme.router_width, 512);
  EXPECT_EQ(readme.seed, 4);
  EXPECT_EQ(readme.router_rate, 1);
  EXPECT_EQ(ToJson(ParseOptions(ToJson(readme)).value()), ToJson(readme));
}

TEST(Options, ErrorsNameTheField) {
  EXPECT_EQ(Complaint("[]"), "E_OPTION: options: expected a JSON object");
  EXPECT_EQ(Complaint(R"({"experts.kount": 8})"), "E_OPTION: experts.kount: no option has this name");
  EXPECT_EQ(Complaint(R"({"batch": 1.5})"), "E_OPTION: batch: found 1.5, expected an integer");
  EXPECT_EQ(Complaint(R"({"batch": 0})"), "E_OPTION: batch: found 0.0, expected at least 1.0");
  EXPECT_EQ(Complaint(R"({"experts.count": 17})"), "E_OPTION: experts.count: found 17, expected at most 16");
  EXPECT_THAT(Complaint(R"({"router.loss": "kl"})"), HasSubstr("found \"kl\", expected one of coverage paper"));
  EXPECT_THAT(Complaint(R"({"experts.kind": "static"})"), HasSubstr("routing.kind"));
  EXPECT_THAT(Complaint(R"({"experts.kind": "carved"})"), HasSubstr("expected layerwise"));
  EXPECT_THAT(Complaint(R"({"experts.kind": "carved", "routing.kind": "layerwise", "carved.top": 8})"),
              HasSubstr("carved.top: expected fewer than experts.count"));
  EXPECT_THAT(Complaint(R"({"routing.kind": "layerwise", "routing.tau": 1})"), HasSubstr("no hysteresis"));
  EXPECT_THAT(Complaint(R"({"preset": "readme", "experts.ratio": "measured"})"), HasSubstr("coverage and static only"));
  EXPECT_EQ(Complaint(R"({"experts.kind": "random", "routing.kind": "layerwise"})"), "");
  EXPECT_THAT(Complaint(R"({"router.joint": "coverage", "routing.kind": "random"})"),
              HasSubstr("router.joint: routing.kind"));
  EXPECT_THAT(Complaint(R"({"router.joint": "coverage", "router.loss": "code"})"),
              HasSubstr("router.joint: router.loss"));
  EXPECT_THAT(Complaint(R"({"distill": 1})"), HasSubstr("teacher"));
  EXPECT_THAT(Complaint(R"({"preset": "best"})"), HasSubstr("preset: found \"best\""));
  for (const char* bad : {"window:", "window:0", "window:4x", "tokens"}) {
    EXPECT_THAT(Complaint((R"({"coverage.granularity": ")" + std::string(bad) + "\"}").c_str()), HasSubstr("document"));
  }
}

TEST(Options, DifferencesThatChangeTheResultAreNamed) {
  Options a, b;
  b.out = "elsewhere";
  b.seconds_max = 3;
  EXPECT_EQ(Difference(a, b), "");
  b.expert_rate = 1;
  EXPECT_EQ(Difference(a, b), "expert.rate: found 0.0001, expected 1.0");
}

TEST(Options, DeepNestingIsNoObject) {
  const std::string deep = "{\"seed\":" + std::string(200'000, '[') + std::string(200'000, ']') + "}";
  EXPECT_THAT(ParseOptions(deep).error().message, HasSubstr("expected a JSON object"));
}

TEST(Options, TausAreNumbersWithCommas) {
  const auto taus = [](const std::string& text) { return ParseOptions(R"({"eval_taus": ")" + text + R"("})"); };
  EXPECT_THAT(EvalTaus(taus("").value()), testing::IsEmpty());
  EXPECT_THAT(EvalTaus(taus("0,0.5,2").value()), ElementsAre(0, 0.5, 2));
  for (const char* bad : {",", "1,", ",1", "1,,2", "-1", "nan", "inf", "one", "1 2"}) {
    EXPECT_FALSE(taus(bad)) << bad;
  }
}

class TokenDataTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_ + "/tokens");
    WriteJson(R"({"format": 1, "vocab": 300, "dtype": "uint16", "domains": ["a"],
                  "splits": {"a": {"train": {"tokens": 6, "documents": [0, 2, 5]}}}})");
    WriteTokens({1, 2, 259, 4, 5, 6});
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void WriteJson(const std::string& text) const { std::ofstream(folder_ + "/data.json") << text; }
  void WriteTokens(const std::vector<uint16_t>& ids) const {
    std::ofstream out(folder_ + "/tokens/a.train.bin", std::ios::binary);
    out.write(reinterpret_cast<const char*>(ids.data()), static_cast<std::streamsize>(ids.size() * 2));
  }
  std::string Complaint() const {
    const auto data = TokenData::Open(folder_);
    return data ? "" : data.error().code + ": " + data.error().message;
  }
  const std::string folder_ = testing::TempDir() + "outrider_token_data";
};

TEST_F(TokenDataTest, ReadsWhatWasPrepared) {
  const TokenData data = TokenData::Open(folder_).value();
  EXPECT_THAT(data.domains(), ElementsAre("a"));
  EXPECT_THAT(data.Read({0, 1}, "train", 3), ElementsAre(2, 259, 4));
  EXPECT_THAT(data.File(0, "train").PiecesOf(0, 6), ElementsAre(2, 3, 1));
  EXPECT_THAT(data.File(0, "train").PiecesOf(1, 3), ElementsAre(1, 2));
  EXPECT_THAT(data.File(0, "train").PiecesOf(2, 3), ElementsAre(3));
  EXPECT_TRUE(data.Require("train", 6));
  EXPECT_EQ(data.Require("valid", 2).error().message, "domain a, split valid: found 0 tokens, expected at least 2");
}

TEST_F(TokenDataTest, UnseenDomainsAreNumberedBehindTheOthers) {
  WriteJson(R"({"format": 1, "vocab": 300, "dtype": "uint16", "domains": ["a"], "unseen": ["b"],
                "splits": {"a": {"train": {"tokens": 6, "documents": [0, 2, 5]}},
                           "b": {"test": {"tokens": 2, "documents": [0]}}}})");
  std::ofstream(folder_ + "/tokens/b.test.bin", std::ios::binary).write("\7\0\10\0", 4);
  const TokenData data = TokenData::Open(folder_).value();
  EXPECT_THAT(data.domains(), ElementsAre("a"));
  EXPECT_THAT(data.DomainsOf("train"), ElementsAre(0));
  EXPECT_THAT(data.DomainsOf("unseen"), ElementsAre(1));
  EXPECT_THAT(data.DomainsOf("test"), testing::IsEmpty());
  EXPECT_EQ(data.Name(1), "b");
  EXPECT_THAT(data.Read({1, 0}, "unseen", 2), ElementsAre(7, 8));
  EXPECT_TRUE(data.Require("unseen", 2));
  EXPECT_EQ(data.Require("unseen", 3).error().message, "domain b, split unseen: found 2 tokens, expected at least 3");
  for (const Place& place : data.Draw(1, Use::kExpert, 0, 4, 2)) EXPECT_EQ(place.domain, 0);
}

TEST_F(TokenDataTest, RefusesWhatDoesNotFit) {
  WriteTokens({1, 2, 300, 4, 5, 6});
  EXPECT_THAT(Complaint(), HasSubstr("found id 300 at token 2, expected ids below 300"));
  WriteTokens({1, 2});
  EXPECT_THAT(Complaint(), HasSubstr("found 4 bytes, expected 6 tokens of 2 bytes"));
  WriteTokens({1, 2, 3, 4, 5, 6});
  WriteJson(R"({"format": 1, "vocab": 300, "dtype": "uint16", "domains": ["a"],
                "splits": {"a": {"train": {"tokens": 6, "documents": [0, 5, 2]}}}})");
  EXPECT_THAT(Complaint(), HasSubstr("document offsets must ascend"));
  WriteJson(R"({"format": 2})");
  EXPECT_THAT(Complaint(), HasSubstr("found format 2, expected 1"));
  WriteJson("{");
  EXPECT_THAT(Complaint(), HasSubstr("E_DATA"));
  std::filesystem::remove(folder_ + "/data.json");
  EXPECT_THAT(Complaint(), HasSubstr("cannot be read"));
}

}  // namespace
}  // namespace outrider::moe
