// The parts of one decode step at the shapes of SmolLM2-135M, one thread: bytes of weights per second of each format,
// and what the memory gives.
//   bench_decode_parts --benchmark_filter=Linear

#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu.h"
#include "kernels/decode.h"
#include "kernels/linear.h"

namespace {

using namespace outrider::kernels;

constexpr int64_t kWidth = 576, kChannels = 1536, kLayers = 8;  // so many that no cache below the last holds them

std::vector<float> Normal(int64_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(random);
  return values;
}

Matrix RandomMatrix(int64_t rows, int64_t columns, Number number) {
  const std::vector<float> row = Normal(columns + rows);
  const auto read = [&](int64_t r, float* to) { std::copy_n(row.data() + r, columns, to); };
  return Matrix::Pack(rows, columns, number, read, {});
}

// What one walk through memory, line after line, reads a second. Argument: threads.
void BM_Read(benchmark::State& state) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  AlignedBytes memory;
  memory.Resize(kBytes);
  std::fill_n(memory.data(), kBytes, std::byte{1});
  Workers workers(static_cast<int>(state.range(0)));
  const int64_t tasks = state.range(0), share = kBytes / tasks;
  for (auto _ : state)
    workers.Run(tasks, [&](int64_t task, int) {
      const std::byte* from = memory.data() + task * share;
      for (int64_t line = 0; line < share; line += kLineBytes) {
        __builtin_prefetch(from + line + 4096);
        benchmark::DoNotOptimize(*reinterpret_cast<const int*>(from + line));
      }
    });
  state.SetBytesProcessed(state.iterations() * kBytes);
}
BENCHMARK(BM_Read)->Arg(1)->Arg(2)->UseRealTime();

// Arguments: number, tokens.
void BM_Linear(benchmark::State& state) {
  const auto number = static_cast<Number>(state.range(0));
  const int64_t tokens = state.range(1), rows = 49152;
  const Matrix matrix = RandomMatrix(rows, kWidth, number);
  const std::vector<float> x = Normal(tokens * kWidth);
  std::vector<float> y(static_cast<size_t>(tokens * rows));
  Workers workers(1);
  Scratch scratch;
  for (auto _ : state) Linear(matrix, {x.data(), tokens, y.data(), rows}, scratch, workers);
  state.SetBytesProcessed(state.iterations() * matrix.bytes());
}
BENCHMARK(BM_Linear)->ArgsProduct({{0, 1, 2}, {1, 8, 64}});

// Arguments: number, tokens, percent of the channels that an expert has.
void BM_Ffn(benchmark::State& state) {
  const auto number = static_cast<Number>(state.range(0));
  const int64_t tokens = state.range(1);
  std::mt19937 random(2);
  std::bernoulli_distribution has(static_cast<double>(state.range(2)) / 100);
  std::vector<Signature> signatures;
  for (int64_t c = 0; c < kChannels; ++c) signatures.push_back(has(random) ? 1 : 2);
  const std::vector<float> row = Normal(kChannels + kWidth);
  const auto read = [&](int64_t r, float* to) { std::copy_n(row.data() + r, kWidth, to); };
  const ChannelSource source{kChannels, kWidth, read, read,
                             [&](int64_t o, float* to) { std::copy_n(row.data() + o, kChannels, to); }};
  std::vector<ChannelStore> layers;
  for (int64_t l = 0; l < kLayers; ++l) layers.push_back(ChannelStore::Pack(source, number, signatures, 2).value());
  const std::vector<float> x = Normal(tokens * kWidth);
  std::vector<float> y(x.size());
  const std::vector<uint8_t> experts(static_cast<size_t>(tokens), 0);
  Workers workers(1);
  Scratch scratch;
  int64_t read_bytes = 0;
  for (const ChannelStore& layer : layers)
    read_bytes += layer.record_bytes() * static_cast<int64_t>(layer.ChannelsOf(0).size());
  for (auto _ : state)
    for (const ChannelStore& layer : layers)
      benchmark::DoNotOptimize(
          Decode(layer, FloatBatch{x.data(), y.data(), experts}, *DecodeEngines(number).front(), scratch, workers));
  state.SetBytesProcessed(state.iterations() * read_bytes);
}
BENCHMARK(BM_Ffn)->ArgsProduct({{0, 1, 2}, {1, 8, 32}, {50, 100}});

// Argument: positions.
void BM_Attention(benchmark::State& state) {
  const KvShape shape{3, 3, 64};
  const int64_t positions = state.range(0);
  const std::vector<float> q = Normal(shape.group * shape.head_dim);
  std::vector<float> cache = Normal((positions / kPageTokens + 1) * shape.PageFloats());
  std::vector<float> scores(static_cast<size_t>(ScoreFloats(shape, positions))), out(q.size());
  std::vector<int32_t> pages;
  for (int32_t p = 0; p <= positions / kPageTokens; ++p) pages.push_back(p);
  for (auto _ : state)
    for (int64_t h = 0; h < shape.heads; ++h) {
      const KvView view{cache.data() + h * shape.HeadFloats(),
                        shape.PageFloats(),
                        pages.data(),
                        0,
                        positions - 1,
                        shape.group,
                        shape.head_dim,
                        0.125F};
      TokenEngines().front()->attend(view, q.data(), scores.data(), out.data());
    }
}
BENCHMARK(BM_Attention)->Arg(128)->Arg(1024);

// Around the matrices of one layer and token: two norms, and the rows rounded to whole numbers.
void BM_Between(benchmark::State& state) {
  const std::vector<float> x = Normal(kWidth);
  std::vector<float> y(x.size()), scales(18);
  std::vector<int16_t> q(x.size());
  for (auto _ : state) {
    for (int i = 0; i < 2; ++i) TokenEngines().front()->norm(x.data(), x.data(), kWidth, 1e-5F, y.data());
    for (int i = 0; i < 3; ++i) LinearEngines(Number::kI8).front()->quantise(y.data(), 18, q.data(), scales.data());
  }
}
BENCHMARK(BM_Between);

}  // namespace
