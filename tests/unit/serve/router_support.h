#pragma once
// A tiny random router, its block in double loops, and pieces of texts for it.

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cpu_support.h"
#include "serve/router/spec.h"

namespace outrider::serve::tests {

inline RouterSpec TinySpec() {
  RouterSpec spec;
  spec.vocab = 101;
  spec.experts = 5;
  spec.width = 40;
  spec.heads = 4;
  return spec;
}

constexpr int64_t kRouterBackbone = 64;

inline Tensors RandomRouter(const RouterSpec& s, uint32_t seed) {
  std::mt19937 random(seed);
  Tensors t;
  if (s.table == RouterTable::kOwn)
    t.AddNormal(random, "embed.weight", {s.vocab, s.width}, 1);
  else
    t.AddNormal(random, "model.embed_tokens.weight", {s.vocab, kRouterBackbone}, 1);
  const auto matrix = [&](const std::string& name, int64_t rows) {
    t.AddNormal(random, name + ".weight", {rows, s.width}, 1 / std::sqrt(static_cast<float>(s.width)));
    t.AddNormal(random, name + ".bias", {rows}, 0.2F);
  };
  if (s.context == RouterContext::kCausal) {
    t.AddNormal(random, "block.attn_norm.weight", {s.width}, 0.2F, 1);
    for (const char* name : {"block.q", "block.k", "block.v", "block.o"}) matrix(name, s.width);
  }
  t.AddNormal(random, "block.mlp_norm.weight", {s.width}, 0.2F, 1);
  t.AddNormal(random, "norm.weight", {s.width}, 0.2F, 1);
  matrix("block.w1", s.width);
  matrix("block.w2", s.width);
  matrix("head", s.experts);
  return t;
}

inline std::vector<Row> ReferenceRouter(const RouterSpec& s, const Tensors& t, const std::vector<int32_t>& ids) {
  const bool own = s.table == RouterTable::kOwn;
  const auto& table = t.at(own ? "embed.weight" : "model.embed_tokens.weight");
  const int64_t stride = own ? s.width : kRouterBackbone;
  std::vector<Row> x, logits;
  for (const int32_t id : ids) x.emplace_back(table.begin() + id * stride, table.begin() + id * stride + s.width);
  const auto add = [](Row& to, const Row& from) { std::ranges::transform(to, from, to.begin(), std::plus<>()); };
  if (s.context == RouterContext::kCausal) {
    std::vector<Row> q, k, v;
    for (const Row& row : x) {
      const Row normed = Normed(row, t.at("block.attn_norm.weight"), 1e-6);
      q.push_back(Times(t, "block.q", normed));
      k.push_back(Times(t, "block.k", normed));
      v.push_back(Times(t, "block.v", normed));
    }
    const int64_t dim = s.width / s.heads;
    const double scale = s.scale == ScoreScale::kNone ? 1 : 1 / std::sqrt(static_cast<double>(dim));
    const auto mixed = Mixed(q, k, v, dim, 1, 0, s.rope_base, scale);
    for (size_t i = 0; i < x.size(); ++i) add(x[i], Times(t, "block.o", mixed[i]));
  }
  for (Row& row : x) {
    Row inner = Times(t, "block.w1", Normed(row, t.at("block.mlp_norm.weight"), 1e-6));
    for (double& h : inner) h = Silu(h);
    add(row, Times(t, "block.w2", inner));
    logits.push_back(Times(t, "head", Normed(row, t.at("norm.weight"), 1e-6)));
  }
  return logits;
}

inline RouteRun RoutePiece(const Text& text, int64_t first, int64_t count, ExpertId previous = kNoExpert) {
  return {std::span(text.ids).subspan(static_cast<size_t>(first), static_cast<size_t>(count)), first, text.pages,
          previous};
}

}  // namespace outrider::serve::tests
