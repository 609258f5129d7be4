#include "moe/token_data.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "base/check.h"
#include "moe/keyed_permutation.h"

namespace outrider::moe {
namespace {

using nlohmann::json;

std::optional<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return std::nullopt;
  std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (in.bad()) return std::nullopt;
  return bytes;
}

template <class Word>
std::vector<int32_t> Widen(const std::string& bytes) {
  std::vector<Word> words(bytes.size() / sizeof(Word));
  std::memcpy(words.data(), bytes.data(), words.size() * sizeof(Word));
  return {words.begin(), words.end()};
}

base::Result<std::vector<int32_t>> ReadTokens(const std::string& path, size_t width, int64_t tokens, int64_t vocab) {
  const std::optional<std::string> bytes = ReadFile(path);
  if (!bytes) return base::Fail("E_DATA", path + ": cannot be read");
  if (bytes->size() != static_cast<size_t>(tokens) * width) {
    return base::Fail("E_DATA", path + ": found " + std::to_string(bytes->size()) + " bytes, expected " +
                                    std::to_string(tokens) + " tokens of " + std::to_string(width) + " bytes");
  }
  std::vector<int32_t> out = width == 2 ? Widen<uint16_t>(*bytes) : Widen<uint32_t>(*bytes);
  const auto bad = std::ranges::find_if(out, [&](int32_t id) { return id < 0 || id >= vocab; });
  if (bad != out.end()) {
    return base::Fail("E_DATA", path + ": found id " + std::to_string(*bad) + " at token " +
                                    std::to_string(bad - out.begin()) + ", expected ids below " +
                                    std::to_string(vocab));
  }
  return out;
}

base::Result<TokenFile> ReadSplit(const std::string& path, const json& entry, size_t width, int64_t vocab) {
  TokenFile file;
  auto tokens = ReadTokens(path, width, entry.at("tokens").get<int64_t>(), vocab);
  if (!tokens) return tl::unexpected(tokens.error());
  file.tokens = *std::move(tokens);
  file.documents = entry.at("documents").get<std::vector<int64_t>>();
  const bool ascending = std::ranges::adjacent_find(file.documents, std::greater_equal<>()) == file.documents.end();
  const auto count = static_cast<int64_t>(file.tokens.size());
  const bool begins = count == 0 ? file.documents.empty() : !file.documents.empty() && file.documents.front() == 0;
  if (!ascending || !begins || (count > 0 && file.documents.back() >= count)) {
    return base::Fail("E_DATA", path + ": document offsets must ascend from 0 and lie within the tokens");
  }
  return file;
}

}  // namespace

std::vector<int64_t> TokenFile::PiecesOf(int64_t begin, int64_t count) const {
  std::vector<int64_t> pieces;
  int64_t from = begin;
  for (auto next = std::ranges::upper_bound(documents, begin); next != documents.end() && *next < begin + count;
       ++next) {
    pieces.push_back(*next - from);
    from = *next;
  }
  if (from < begin + count) pieces.push_back(begin + count - from);
  return pieces;
}

base::Result<TokenData> TokenData::Open(const std::string& folder) {
  const std::string path = folder + "/data.json";
  const std::optional<std::string> text = ReadFile(path);
  if (!text) return base::Fail("E_DATA", path + ": cannot be read");
  TokenData data;
  try {
    const json root = json::parse(*text);
    const auto format = root.at("format").get<int64_t>();
    if (format != 1) return base::Fail("E_DATA", path + ": found format " + std::to_string(format) + ", expected 1");
    const auto dtype = root.at("dtype").get<std::string>();
    if (dtype != "uint16" && dtype != "uint32") {
      return base::Fail("E_DATA", path + ": found dtype " + dtype + ", expected uint16 or uint32");
    }
    data.vocab_ = root.at("vocab").get<int64_t>();
    data.domains_ = root.at("domains").get<std::vector<std::string>>();
    if (data.domains_.empty()) return base::Fail("E_DATA", path + ": found no domain, expected at least one");
    data.unseen_ = root.value("unseen", std::vector<std::string>());
    for (size_t d = 0; d < data.domains_.size() + data.unseen_.size(); ++d) {
      const std::string& domain = data.Name(static_cast<int64_t>(d));
      const bool unseen = d >= data.domains_.size();
      std::map<std::string, TokenFile>& splits = data.splits_.emplace_back();
      for (const auto& [split, entry] : root.at("splits").at(domain).items()) {
        std::string file = folder;
        file += "/tokens/" + domain + "." + split + ".bin";
        auto read = ReadSplit(file, entry, dtype == "uint16" ? 2 : 4, data.vocab_);
        if (!read) return tl::unexpected(read.error());
        splits[unseen ? "unseen" : split] = *std::move(read);
      }
    }
  } catch (const json::exception& error) {
    return base::Fail("E_DATA", path + ": " + error.what());
  }
  return data;
}

TokenData::TokenData(int64_t vocab, std::vector<std::string> domains,
                     std::vector<std::map<std::string, TokenFile>> splits)
    : vocab_(vocab), domains_(std::move(domains)), splits_(std::move(splits)) {
  OUTRIDER_CHECK(domains_.size() == splits_.size(), domains_.size(), " domains, ", splits_.size(), " entries");
}

const TokenFile& TokenData::File(int64_t domain, const std::string& split) const {
  static const TokenFile kNone;
  const auto& files = splits_.at(static_cast<size_t>(domain));
  const auto found = files.find(split);
  return found == files.end() ? kNone : found->second;
}

const std::string& TokenData::Name(int64_t domain) const {
  const auto d = static_cast<size_t>(domain);
  return d < domains_.size() ? domains_[d] : unseen_.at(d - domains_.size());
}

std::vector<int64_t> TokenData::DomainsOf(const std::string& split) const {
  std::vector<int64_t> found;
  for (size_t d = 0; d < splits_.size(); ++d) {
    if (splits_[d].contains(split)) found.push_back(static_cast<int64_t>(d));
  }
  return found;
}

base::Result<void> TokenData::Require(const std::string& split, int64_t tokens) const {
  const size_t tuned = domains_.size();
  for (size_t d = split == "unseen" ? tuned : 0; d < (split == "unseen" ? splits_.size() : tuned); ++d) {
    const size_t found = File(static_cast<int64_t>(d), split).tokens.size();
    if (static_cast<int64_t>(found) >= tokens) continue;
    return base::Fail("E_DATA", "domain " + Name(static_cast<int64_t>(d)) + ", split " + split + ": found " +
                                    std::to_string(found) + " tokens, expected at least " + std::to_string(tokens));
  }
  return {};
}

std::span<const int32_t> TokenData::Read(const Place& place, const std::string& split, int64_t count) const {
  const std::vector<int32_t>& tokens = File(place.domain, split).tokens;
  OUTRIDER_CHECK(place.offset >= 0 && place.offset + count <= static_cast<int64_t>(tokens.size()), place.offset, " + ",
                 count, " of ", tokens.size());
  return std::span(tokens).subspan(static_cast<size_t>(place.offset), static_cast<size_t>(count));
}

std::vector<Place> TokenData::Spread(const std::string& split, int64_t samples, int64_t tokens) const {
  std::vector<Place> places;
  for (int64_t j = 0; j < samples; ++j) {
    for (int64_t d = 0; d < static_cast<int64_t>(domains_.size()); ++d) {
      const int64_t last = static_cast<int64_t>(File(d, split).tokens.size()) - tokens;
      OUTRIDER_CHECK(last >= 0, "domain ", domains_[static_cast<size_t>(d)], " is shorter than one sample");
      places.push_back({d, samples == 1 ? last / 2 : last * j / (samples - 1)});
    }
  }
  return places;
}

std::vector<Place> TokenData::Draw(uint64_t seed, Use use, int64_t first, int64_t samples, int64_t tokens) const {
  OUTRIDER_CHECK(first >= 0 && tokens >= 2, "sample ", first, " of ", tokens, " tokens");
  std::vector<Place> places;
  const auto count = static_cast<int64_t>(domains_.size());
  for (int64_t sample = first; sample < first + samples; ++sample) {
    const int64_t domain = sample % count, drawn = sample / count, stride = tokens - 1;
    const int64_t size = static_cast<int64_t>(File(domain, "train").tokens.size()) - 1;
    OUTRIDER_CHECK(size >= stride, "domain ", domains_[static_cast<size_t>(domain)], " is shorter than one sample");
    // One place less than there is room for, so that the cut can start anywhere.
    const int64_t cuts = std::max<int64_t>(1, size / stride - 1);
    const auto pass = static_cast<uint32_t>(drawn / cuts);
    const uint64_t key = Random64(seed, Use::kPass, static_cast<uint32_t>(use), static_cast<uint32_t>(domain), pass);
    const auto room = static_cast<uint64_t>(size - cuts * stride);
    const auto start = static_cast<int64_t>(Below(Random64(key, Use::kPass, 0, 0, 0), room + 1));
    const uint64_t place = KeyedPermutation(key, static_cast<uint64_t>(cuts), static_cast<uint64_t>(drawn % cuts));
    places.push_back({domain, start + static_cast<int64_t>(place) * stride});
  }
  return places;
}

}  // namespace outrider::moe
