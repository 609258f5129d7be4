#include "moe/select.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace outrider::moe {

std::vector<int64_t> TopChannels(std::span<const double> scores, int64_t k) {
  const auto count = static_cast<int64_t>(scores.size());
  OUTRIDER_CHECK(k >= 0 && k <= count, "top ", k, " of ", count);
  for (const double s : scores) OUTRIDER_CHECK(!std::isnan(s), "a score is NaN");
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto higher = [&](int64_t a, int64_t b) {
    const double left = scores[static_cast<size_t>(a)], right = scores[static_cast<size_t>(b)];
    return left != right ? left > right : a < b;
  };
  std::nth_element(order.begin(), order.begin() + k, order.end(), higher);
  order.resize(static_cast<size_t>(k));
  std::ranges::sort(order);
  return order;
}

namespace {

std::vector<double> Standardised(std::span<const double> scores) {
  const auto count = static_cast<double>(scores.size());
  const double mean = std::accumulate(scores.begin(), scores.end(), 0.0) / count;
  double square = 0;
  for (const double s : scores) square += (s - mean) * (s - mean);
  const double deviation = std::sqrt(square / count);
  std::vector<double> out(scores.begin(), scores.end());
  for (double& s : out) s = deviation > 0 ? (s - mean) / deviation : 0;
  return out;
}

}  // namespace

std::vector<std::vector<int64_t>> TopOverall(std::span<const double> scores, int64_t layers, int64_t total) {
  const auto all = static_cast<int64_t>(scores.size());
  OUTRIDER_CHECK(layers >= 1 && all % layers == 0 && total >= layers && total <= all, total, " of ", all);
  const int64_t channels = all / layers;
  std::vector<double> flat(scores.begin(), scores.end());
  for (int64_t l = 0; l < layers; ++l) {
    const std::span<double> layer =
        std::span(flat).subspan(static_cast<size_t>(l * channels), static_cast<size_t>(channels));
    // The best channel of a layer comes before all else.
    layer[static_cast<size_t>(TopChannels(layer, 1)[0])] = INFINITY;
  }
  std::vector<std::vector<int64_t>> kept(static_cast<size_t>(layers));
  for (const int64_t at : TopChannels(flat, total)) kept[static_cast<size_t>(at / channels)].push_back(at % channels);
  return kept;
}

std::vector<std::vector<int64_t>> TopAcrossLayers(std::span<const double> scores, int64_t layers, int64_t total) {
  const auto all = static_cast<int64_t>(scores.size());
  OUTRIDER_CHECK(layers >= 1 && all % layers == 0, all, " scores of ", layers, " layers");
  const auto channels = static_cast<size_t>(all / layers);
  std::vector<double> flat;
  for (size_t l = 0; l < static_cast<size_t>(layers); ++l) {
    const std::vector<double> layer = Standardised(scores.subspan(l * channels, channels));
    flat.insert(flat.end(), layer.begin(), layer.end());
  }
  return TopOverall(flat, layers, total);
}

}  // namespace outrider::moe
