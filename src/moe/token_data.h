#pragma once
// A folder of prepared tokens: data.json and tokens/<domain>.<split>.bin, little-endian uint16 or uint32.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "moe/philox.h"

namespace outrider::moe {

// The tokens of one split of one domain, one document after another.
struct TokenFile {
  std::vector<int32_t> tokens;
  std::vector<int64_t> documents;  // offset of each document's first token, ascending, the first one 0

  // Lengths of the pieces that document starts cut [begin, begin + count) into.
  std::vector<int64_t> PiecesOf(int64_t begin, int64_t count) const;
};

// A run of tokens of one split: where a sample begins.
struct Place {
  int64_t domain = 0;
  int64_t offset = 0;
  friend bool operator==(const Place&, const Place&) = default;
};

class TokenData {
 public:
  // Reads everything into memory (4 bytes a token). Codes: E_DATA; the message names file, found and expected.
  static base::Result<TokenData> Open(const std::string& folder);
  // From memory; `splits`: one per domain and split name. For tests.
  TokenData(int64_t vocab, std::vector<std::string> domains, std::vector<std::map<std::string, TokenFile>> splits);

  int64_t vocab() const { return vocab_; }
  const std::vector<std::string>& domains() const { return domains_; }
  const TokenFile& File(int64_t domain, const std::string& split) const;
  // Domains that have the split. "unseen" is the text of the domains that nothing is tuned on, which have no other;
  // they are numbered behind domains().
  std::vector<int64_t> DomainsOf(const std::string& split) const;
  const std::string& Name(int64_t domain) const;

  // Error E_DATA when a split of a domain is missing or shorter than `tokens`: name, tokens found, tokens needed.
  base::Result<void> Require(const std::string& split, int64_t tokens) const;
  // `count` tokens of `split` from `place` on.
  std::span<const int32_t> Read(const Place& place, const std::string& split, int64_t count) const;

  // `samples` places per domain, evenly spread over the split, none overlapping while the split is long enough; [n * j
  // + d] is sample j of domain d.
  std::vector<Place> Spread(const std::string& split, int64_t samples, int64_t tokens) const;
  // Samples `first` to `first + samples - 1` of the sequence of a run: domains in turn, and in each domain pass after
  // pass over its train text, cut into places of `tokens` - 1 (the last token of a sample is a target only). Within a
  // pass no place comes twice. Order and start of the cut are functions of seed, use, domain and pass, so any part of
  // the sequence is known without what came before.
  std::vector<Place> Draw(uint64_t seed, Use use, int64_t first, int64_t samples, int64_t tokens) const;

 private:
  TokenData() = default;
  int64_t vocab_ = 0;
  std::vector<std::string> domains_, unseen_;
  std::vector<std::map<std::string, TokenFile>> splits_;  // of domains_, then of unseen_
};

}  // namespace outrider::moe
