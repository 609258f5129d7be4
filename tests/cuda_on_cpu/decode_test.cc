// A layer of a decoding step and the logits behind it, kernel by kernel on the CPU (tests/support/cuda_on_cpu), against
// sums in double precision over the same rounded inputs; and that a token's bits are its own.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "block.h"
#include "kernels/cuda/decode_step.h"
#include "kernels/cuda/paged_attention.h"
#include "kernels/cuda/projections.h"
#include "kernels/cuda/residual.h"
#include "kernels/cuda/tied_ffn.h"

namespace outrider::kernels::cuda {
namespace {

using Bf16 = __nv_bfloat16;
using Numbers = std::vector<double>;
constexpr int kPage = kAttentionPageTokens, kTable = 6, kMultiprocessors = 3;

struct Shape {
  const char* name;
  int width, heads, kv_heads, head_dim, channels, experts, vocab, window;
};

const Shape kShapes[] = {
    {"heads of 64, odd vocabulary", 576, 3, 1, 64, 100, 5, 101, 0},
    {"three heads of keys", 576, 9, 3, 64, 144, 4, 128, 0},
    {"heads of 128, window", 256, 2, 1, 128, 1200, 16, 64, 20},
    {"heads of 32, dense", 64, 2, 1, 32, 48, 1, 64, 0},
};

double Number(Bf16 value) { return __bfloat162float(value); }

struct World {
  Shape shape;
  std::mt19937 generator{7};
  int all;
  std::vector<Bf16> qkv, qkv_bias, o, records, attn_norm, ffn_norm, norm, head, table, keys, values;
  std::vector<uint16_t> signatures;
  std::vector<float> cos, sin;
  std::vector<int32_t> ids, positions, pages;
  std::vector<uint8_t> experts;

  explicit World(const Shape& s) : shape(s), all((s.heads + 2 * s.kv_heads) * s.head_dim) {
    const double by = 1 / std::sqrt(double(s.width));
    qkv = Draw(size_t(all) * s.width, by), qkv_bias = Draw(all, 0.1);
    o = Draw(size_t(s.width) * s.heads * s.head_dim, 1 / std::sqrt(double(s.heads * s.head_dim)));
    records = Draw(size_t(s.channels) * 3 * s.width, by);
    attn_norm = Draw(s.width, 1), ffn_norm = Draw(s.width, 1), norm = Draw(s.width, 1);
    head = Draw(size_t(s.vocab) * s.width, by), table = Draw(size_t(50) * s.width, 1);
    keys = Draw(size_t(kDecodeTokensMax * kTable + 1) * s.kv_heads * kPage * s.head_dim, 0.5);
    values = Draw(keys.size(), 0.5);
    for (int c = 0; c < s.channels; ++c) signatures.push_back(s.experts == 1 ? 1 : generator() % (1U << s.experts));
    if (s.experts > 1) std::fill_n(signatures.begin() + 16, 32, 0);  // groups that nobody wants
    for (int t = 0; t < kDecodeTokensMax; ++t) {
      ids.push_back(int(generator() % 50)), positions.push_back(int(generator() % (kTable * kPage)));
      experts.push_back(uint8_t(generator() % unsigned(s.experts)));
      for (int p = 0; p < kTable; ++p) pages.push_back(t * kTable + (p * 5) % kTable);
      for (int i = 0; i < s.head_dim / 2; ++i) {
        cos.push_back(std::cos(float(t + i))), sin.push_back(std::sin(float(t + i)));
      }
    }
    positions[1] = 0, positions[2] = kTable * kPage - 1;
  }

  std::vector<Bf16> Draw(size_t count, double by) {
    std::normal_distribution<float> normal(0, float(by));
    std::vector<Bf16> made(count);
    for (Bf16& m : made) m = __float2bfloat16(normal(generator));
    return made;
  }
};

// One layer for tokens [first, first + tokens) of the world, all stages kept.
struct Staged {
  const World& w;
  int first, tokens;
  std::vector<Bf16> x, weighted, qkv, mixed, keys, values;
  std::vector<float> squares, logits;
  std::vector<uint8_t> live, scratch;
  std::vector<Bf16> before_ffn, before_o;

  Layer layer;

  Staged(const World& world, int from, int count, int layers = 1)
      : w(world), first(from), tokens(count), keys(w.keys), values(w.values) {
    Poison();
    const Shape& s = w.shape;
    EXPECT_EQ(FindLive({w.signatures.data(), s.channels, live.data()}, w.experts.data() + first, tokens, nullptr), 0);
    EXPECT_EQ(Embed(w.table.data(), w.ids.data() + first, tokens, To(w.attn_norm), nullptr), 0);
    for (int l = 0; l < layers; ++l)
      RunLayer(l == 0 ? 1 : DecodeSquares(s.width), l + 1 == layers ? w.norm : w.attn_norm);
    Projection p = Project(w.head, s.vocab, s.width, To(w.norm));
    p.x = weighted.data(), p.squares = DecodeSquares(s.width);
    EXPECT_EQ(ProjectLogits(p, logits.data(), nullptr), 0);
  }

  // Every number that is not written shows.
  void Poison() {
    const Shape& s = w.shape;
    const Bf16 nan = __float2bfloat16(NAN);
    x.assign(size_t(tokens) * s.width, nan), weighted = x, qkv.assign(size_t(tokens) * w.all, nan);
    mixed.assign(size_t(tokens) * s.heads * s.head_dim, nan);
    squares.assign(size_t(tokens) * kSquaresMax, NAN), logits.assign(size_t(tokens) * s.vocab, NAN);
    layer.records = w.records.data(), layer.signatures = w.signatures.data(), layer.channels = s.channels;
    layer.width = s.width, layer.experts = s.experts;
    live.resize(size_t(LiveBytes(s.channels))), scratch.assign(size_t(DecodeBytes(layer)), 0xff);
  }

  void RunLayer(int parts, const std::vector<Bf16>& next_norm) {
    const Shape& s = w.shape;
    Projection p = Project(w.qkv, w.all, s.width, To(w.attn_norm));
    p.x = weighted.data(), p.squares = parts, p.bias = w.qkv_bias.data();
    EXPECT_EQ(ProjectQkv(p, Attention(), nullptr), 0);
    EXPECT_EQ(Attend(Attention(), nullptr), 0);
    before_o = x;
    p = Project(w.o, s.width, s.heads * s.head_dim, To(w.ffn_norm));
    p.x = mixed.data();
    EXPECT_EQ(ProjectAndAdd(p, nullptr), 0);
    before_ffn = x;
    DecodeCall call;
    call.ids = w.experts.data() + first, call.live = live.data(), call.x = weighted.data();
    call.squares = ProjectSquares(s.width), call.residual = To(next_norm), call.tokens = tokens;
    call.scratch = scratch.data(), call.multiprocessors = kMultiprocessors;
    EXPECT_EQ(Decode(layer, call, nullptr), 0);
  }

  // The same by RunStep, into the same places. All layers have the same weights and pages.
  void RunAgain(int layers) {
    const Shape& s = w.shape;
    keys = w.keys, values = w.values;
    Poison();
    StepModel model;
    model.layers.assign(size_t(layers), {w.attn_norm.data(), w.qkv.data(), w.qkv_bias.data(), w.o.data(), nullptr,
                                         w.ffn_norm.data(), layer, s.window});
    model.embed = w.table.data(), model.norm = w.norm.data(), model.head = w.head.data(), model.width = s.width;
    model.vocab = s.vocab, model.heads = s.heads, model.kv_heads = s.kv_heads, model.head_dim = s.head_dim;
    model.eps = 1e-5F;
    StepBuffers buffers;
    buffers.x = x.data(), buffers.weighted = weighted.data(), buffers.squares = squares.data();
    buffers.qkv = qkv.data(), buffers.mixed = mixed.data(), buffers.scratch = scratch.data();
    buffers.live_stride = LiveBytes(s.channels);
    std::vector<uint8_t> lives(size_t(buffers.live_stride) * size_t(layers));
    buffers.live = lives.data();
    const std::vector<LiveJob> jobs = JobsOf(model, buffers);
    buffers.jobs = jobs.data();
    Step step;
    step.ids = w.ids.data() + first, step.positions = w.positions.data() + first;
    step.experts = w.experts.data() + first, step.pages = w.pages.data() + first * kTable;
    step.cos = w.cos.data() + first * s.head_dim / 2, step.sin = w.sin.data() + first * s.head_dim / 2;
    const std::vector<void*> key_pages(size_t(layers), keys.data()), value_pages(size_t(layers), values.data());
    step.keys = key_pages.data(), step.values = value_pages.data(), step.logits = logits.data();
    step.tokens = tokens, step.table = kTable, step.multiprocessors = kMultiprocessors;
    ASSERT_EQ(RunStep(model, buffers, step, nullptr), 0);
  }

  Residual To(const std::vector<Bf16>& next) {
    return {x.data(), weighted.data(), squares.data(), next.data(), 1e-5F, w.shape.width};
  }
  Projection Project(const std::vector<Bf16>& weight, int rows, int depth, const Residual& residual) {
    Projection p;
    p.weight = weight.data(), p.residual = residual, p.rows = rows, p.depth = depth, p.tokens = tokens;
    p.multiprocessors = kMultiprocessors;
    return p;
  }
  PagedAttention Attention() {
    const Shape& s = w.shape;
    PagedAttention a;
    a.qkv = qkv.data(), a.cos = w.cos.data() + first * s.head_dim / 2, a.sin = w.sin.data() + first * s.head_dim / 2;
    a.positions = w.positions.data() + first, a.pages = w.pages.data() + first * kTable;
    a.keys = keys.data(), a.values = values.data(), a.out = mixed.data(), a.rows = tokens, a.table = kTable;
    a.heads = s.heads, a.kv_heads = s.kv_heads, a.head_dim = s.head_dim, a.window = s.window;
    a.scale = 1 / std::sqrt(float(s.head_dim));
    return a;
  }
};

// Rows of a product in double precision; with `norm`, of normalized x.
Numbers Product(const Bf16* weight, int64_t stride, int rows, int depth, const Bf16* x, const Bf16* norm) {
  double squares = 0;
  for (int k = 0; k < depth; ++k) squares += Number(x[k]) * Number(x[k]);
  Numbers out;
  for (int r = 0; r < rows; ++r) {
    double sum = 0;
    for (int k = 0; k < depth; ++k)
      sum += Number(weight[r * stride + k]) * Number(x[k]) * (norm == nullptr ? 1 : Number(norm[k]));
    out.push_back(norm == nullptr ? sum : sum / std::sqrt(squares / depth + 1e-5));
  }
  return out;
}

void ExpectNear(const Numbers& found, const Numbers& expected, const std::string& what) {
  ASSERT_EQ(found.size(), expected.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  EXPECT_LT(std::sqrt(error / size), 6e-3) << what;  // bf16 inputs of the last product and results
}

Numbers Row(const std::vector<Bf16>& from, int row, int width) {
  Numbers out;
  for (int i = 0; i < width; ++i) out.push_back(Number(from[size_t(row) * width + i]));
  return out;
}

void CheckQkv(const Staged& step, int t) {
  const World& w = step.w;
  const Shape& s = w.shape;
  const int dim = s.head_dim, half = dim / 2, token = step.first + t;
  Numbers expected =
      Product(w.qkv.data(), s.width, w.all, s.width, step.before_o.data() + t * s.width, w.attn_norm.data());
  Numbers found;
  for (int i = 0; i < w.all; ++i) expected[i] += Number(w.qkv_bias[i]);
  const int position = w.positions[token];
  for (int head = 0; head < s.heads + 2 * s.kv_heads; ++head) {
    for (int i = 0; i < half && head < s.heads + s.kv_heads; ++i) {
      double &a = expected[head * dim + i], &b = expected[head * dim + half + i];
      const double c = w.cos[token * half + i], d = w.sin[token * half + i], turned = a * c - b * d;
      b = b * c + a * d, a = turned;
    }
    const int64_t page = w.pages[token * kTable + position / kPage], kv = (head - s.heads) % s.kv_heads;
    const Bf16* at = head < s.heads
                         ? &step.qkv[size_t(t) * w.all + head * dim]
                         : &(head < s.heads + s.kv_heads
                                 ? step.keys
                                 : step.values)[size_t(((page * s.kv_heads + kv) * kPage + position % kPage) * dim)];
    for (int i = 0; i < dim; ++i) found.push_back(Number(at[i]));
  }
  ExpectNear(found, expected, "qkv of token " + std::to_string(token));
}

void CheckAttention(const Staged& step, int t) {
  const World& w = step.w;
  const Shape& s = w.shape;
  const int token = step.first + t, last = w.positions[token];
  Numbers expected;
  for (int head = 0; head < s.heads; ++head) {
    Numbers mixed(s.head_dim, 0.0);
    double total = 0;
    for (int p = s.window > 0 ? std::max(0, last - s.window + 1) : 0; p <= last; ++p) {
      const int64_t page = w.pages[token * kTable + p / kPage], kv = head / (s.heads / s.kv_heads);
      const auto at = size_t(((page * s.kv_heads + kv) * kPage + p % kPage) * s.head_dim);
      double score = 0;
      for (int i = 0; i < s.head_dim; ++i)
        score += Number(step.qkv[size_t(t) * w.all + head * s.head_dim + i]) * Number(step.keys[at + i]);
      const double weight = std::exp(score / std::sqrt(double(s.head_dim)));
      total += weight;
      for (int i = 0; i < s.head_dim; ++i) mixed[i] += weight * Number(step.values[at + i]);
    }
    for (const double m : mixed) expected.push_back(m / total);
  }
  ExpectNear(Row(step.mixed, t, s.heads * s.head_dim), expected, "attention of token " + std::to_string(token));
}

void CheckRest(const Staged& step, int t) {
  const World& w = step.w;
  const Shape& s = w.shape;
  const std::string token = " of token " + std::to_string(step.first + t);
  const int depth = s.heads * s.head_dim;
  Numbers expected = Product(w.o.data(), depth, s.width, depth, step.mixed.data() + t * depth, nullptr);
  for (int i = 0; i < s.width; ++i) expected[i] += Number(step.before_o[size_t(t) * s.width + i]);
  ExpectNear(Row(step.before_ffn, t, s.width), expected, "o" + token);
  const Bf16* x = step.before_ffn.data() + t * s.width;
  const Numbers gate = Product(w.records.data(), 3 * s.width, s.channels, s.width, x, w.ffn_norm.data());
  const Numbers up = Product(w.records.data() + s.width, 3 * s.width, s.channels, s.width, x, w.ffn_norm.data());
  Numbers sums(s.width, 0.0), found = Row(step.x, t, s.width);
  for (int c = 0; c < s.channels; ++c) {
    if ((w.signatures[c] >> w.experts[step.first + t] & 1) == 0) continue;
    const double hidden = gate[c] / (1 + std::exp(-gate[c])) * up[c];
    for (int i = 0; i < s.width; ++i) sums[i] += hidden * Number(w.records[(size_t(c) * 3 + 2) * s.width + i]);
  }
  for (int i = 0; i < s.width; ++i) sums[i] += Number(x[i]);
  ExpectNear(found, sums, "ffn" + token);
  const Numbers logits = Product(w.head.data(), s.width, s.vocab, s.width, step.x.data() + t * s.width, w.norm.data());
  const float* own = step.logits.data() + t * s.vocab;
  ExpectNear(Numbers(own, own + s.vocab), logits, "logits" + token);
}

TEST(DecodeOnCpu, StagesAreThoseOfPlainSums) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(shape.name);
    const World world(shape);
    for (const int tokens : {3, 13, 32}) {
      const Staged step(world, 0, tokens);
      for (int t = 0; t < tokens; ++t) {
        CheckQkv(step, t);
        CheckAttention(step, t);
        CheckRest(step, t);
      }
    }
  }
}

TEST(DecodeOnCpu, BitsOfATokenAreItsOwn) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(shape.name);
    const World world(shape);
    const Staged together(world, 0, 32);
    for (const auto& [first, tokens] : {std::pair{0, 1}, {3, 8}, {5, 9}, {7, 20}}) {
      const Staged apart(world, first, tokens);
      for (int t = 0; t < tokens; ++t) {
        const size_t row = size_t(first + t);
        EXPECT_EQ(Row(apart.x, t, shape.width), Row(together.x, int(row), shape.width)) << row << " of " << tokens;
        EXPECT_TRUE(std::equal(apart.logits.begin() + t * shape.vocab, apart.logits.begin() + (t + 1) * shape.vocab,
                               together.logits.begin() + int64_t(row) * shape.vocab))
            << row << " of " << tokens;
      }
    }
  }
}

TEST(DecodeOnCpu, AStepIsTheChainOfItsLayers) {
  for (const Shape& shape : kShapes) {
    const World world(shape);
    for (const int layers : {1, 3}) {
      Staged chain(world, 2, 6, layers);
      const std::vector<float> logits = chain.logits;
      chain.RunAgain(layers);
      EXPECT_EQ(chain.logits, logits) << shape.name << ", layers " << layers;
    }
  }
}

TEST(DecodeOnCpu, WithoutAResidualTheResultIsTheFfnOfX) {
  const World world(kShapes[0]);
  const Shape& s = world.shape;
  const Staged step(world, 0, 5);
  Layer layer;
  layer.records = world.records.data(), layer.signatures = world.signatures.data(), layer.channels = s.channels;
  layer.width = s.width, layer.experts = s.experts;
  std::vector<uint8_t> scratch(size_t(DecodeBytes(layer)), 0xff);
  std::vector<Bf16> y(size_t(5) * s.width);
  ASSERT_EQ(
      Decode(layer, world.experts.data(), world.table.data(), y.data(), 5, scratch.data(), kMultiprocessors, nullptr),
      0);
  for (int t = 0; t < 5; ++t) {
    const Bf16* x = world.table.data() + t * s.width;
    const Numbers gate = Product(world.records.data(), 3 * s.width, s.channels, s.width, x, nullptr);
    const Numbers up = Product(world.records.data() + s.width, 3 * s.width, s.channels, s.width, x, nullptr);
    Numbers sums(s.width, 0.0);
    for (int c = 0; c < s.channels; ++c) {
      if ((world.signatures[c] >> world.experts[t] & 1) == 0) continue;
      for (int i = 0; i < s.width; ++i)
        sums[i] +=
            gate[c] / (1 + std::exp(-gate[c])) * up[c] * Number(world.records[(size_t(c) * 3 + 2) * s.width + i]);
    }
    ExpectNear(Row(y, t, s.width), sums, "token " + std::to_string(t));
  }
}

}  // namespace
}  // namespace outrider::kernels::cuda
