#include "files/sha256.h"

#include <gtest/gtest.h>

namespace outrider::files {
namespace {

std::string Of(std::string_view text) {
  Sha256 sum;
  sum.Add(text);
  return sum.Hex();
}

// The examples of FIPS 180-4, and a million letters.
TEST(Sha256, PublishedExamples) {
  EXPECT_EQ(Of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Of(std::string(1'000'000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesOfAnySizeMakeTheSameSum) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += static_cast<char>('a' + i % 26);
  for (size_t length : {54UL, 55UL, 56UL, 63UL, 64UL, 65UL, 119UL, 128UL, 300UL}) {
    const std::string part = text.substr(0, length);
    for (size_t piece : {1UL, 7UL, 63UL, 64UL, 100UL}) {
      Sha256 sum;
      for (size_t at = 0; at < part.size(); at += piece) sum.Add(std::string_view(part).substr(at, piece));
      EXPECT_EQ(sum.Hex(), Of(part)) << length << " bytes by " << piece;
    }
  }
  EXPECT_NE(Of(text), Of(text.substr(1)));
}

}  // namespace
}  // namespace outrider::files
