#include "files/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

namespace outrider::files {
namespace {

using testing::HasSubstr;

std::string Complaint(const std::string& header, uint64_t data_bytes) {
  const auto parsed = ParseHeader(header, 8 + header.size() + data_bytes);
  return parsed ? "" : parsed.error().message;
}

TEST(Safetensors, WrittenHeadersAreRead) {
  std::vector<TensorEntry> tensors(3);
  tensors[0] = {"b", Dtype::kBF16, {2, 3}};
  tensors[1] = {"a", Dtype::kF32, {}};
  tensors[2] = {"empty", Dtype::kI64, {0, 7}};
  const std::string text = WriteHeader(tensors, {{"format", "pt"}});
  EXPECT_EQ(text.size() % 8, 0u);
  const auto header = ParseHeader(text, 8 + text.size() + 16);
  ASSERT_TRUE(header) << header.error().message;
  ASSERT_EQ(header->tensors.size(), 3u);
  EXPECT_EQ(header->tensors[0].name, "b");
  EXPECT_EQ(header->tensors[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(header->tensors[1].begin, 12u);
  EXPECT_EQ(header->tensors[2].end, 16u);
  EXPECT_EQ(header->metadata.at("format"), "pt");
  EXPECT_EQ(header->data_begin, 8 + text.size());
}

TEST(Safetensors, LengthIsBoundedByTheFile) {
  std::array<std::byte, 8> start{};
  const uint64_t length = 100;
  std::memcpy(start.data(), &length, 8);
  EXPECT_EQ(HeaderLength(start, 108).value(), 100u);
  EXPECT_THAT(HeaderLength(start, 107).error().message, HasSubstr("expected at most the 99"));
  const uint64_t huge = kHeaderBytesMax + 1;
  std::memcpy(start.data(), &huge, 8);
  EXPECT_THAT(HeaderLength(start, uint64_t{1} << 40).error().message, HasSubstr("100000001"));
  EXPECT_FALSE(HeaderLength(std::span(start).first(7), 7));
}

TEST(Safetensors, ErrorsNameTensorFoundAndExpected) {
  EXPECT_EQ(Complaint(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8), "");
  EXPECT_THAT(Complaint(R"({"w":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})", 8), HasSubstr("w: found dtype \"F33\""));
  EXPECT_THAT(Complaint(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}})", 9), HasSubstr("expected 8 bytes for F32 [2]"));
  EXPECT_THAT(Complaint(R"({"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), HasSubstr("found shape [-2]"));
  EXPECT_THAT(Complaint(R"({"w":{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}})", 8), HasSubstr("found shape [2.5]"));
  EXPECT_THAT(Complaint(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8), HasSubstr("found data_offsets [8,0]"));
  EXPECT_THAT(Complaint(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8), HasSubstr("the field \"x\""));
  EXPECT_THAT(Complaint(R"({"w":{"dtype":"F32","shape":[2]}})", 8), HasSubstr("found 2 fields"));
  EXPECT_THAT(Complaint(R"({"w":7})", 0), HasSubstr("w: found no object"));
  EXPECT_THAT(Complaint(R"([1])", 0), HasSubstr("no JSON object"));
  EXPECT_THAT(Complaint("{\"\xff\":1}", 0), HasSubstr("UTF-8"));
}

TEST(Safetensors, SizesThatOverflowAreRefused) {
  EXPECT_THAT(Complaint(R"({"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0), HasSubstr("too many"));
}

TEST(Safetensors, NamesStandOnce) {
  const std::string twice =
      R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})";
  EXPECT_THAT(Complaint(twice, 2), HasSubstr("\"w\" stands twice"));
}

TEST(Safetensors, TensorsFillTheFile) {
  const auto two = [](int b_begin, int b_end) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[)" + std::to_string(b_end - b_begin) +
           R"(],"data_offsets":[)" + std::to_string(b_begin) + "," + std::to_string(b_end) + "]}}";
  };
  EXPECT_EQ(Complaint(two(4, 6), 6), "");
  EXPECT_THAT(Complaint(two(5, 7), 7), HasSubstr("b: found its first byte at 5, expected it at 4 (a hole)"));
  EXPECT_THAT(Complaint(two(3, 5), 5), HasSubstr("overlaps"));
  EXPECT_THAT(Complaint(two(4, 6), 7), HasSubstr("found 7 bytes of data, expected 6"));
}

TEST(Safetensors, DeepNestingIsRefused) {
  EXPECT_NE(Complaint(R"({"w":{"dtype":[[[[1]]]],"shape":[2],"data_offsets":[0,8]}})", 8), "");
}

}  // namespace
}  // namespace outrider::files
