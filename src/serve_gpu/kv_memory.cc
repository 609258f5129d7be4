#include "serve_gpu/kv_memory.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "kernels/engine.h"
#include "serve_gpu/staging.h"

namespace outrider::serve_gpu {
namespace {

constexpr int64_t kLibraryBytes = int64_t{256} << 20;  // workspaces of the libraries, graphs, what allocators round up

std::string Gigabytes(int64_t bytes) {
  char text[32];
  (void)std::snprintf(text, sizeof(text), "%.2f GB", static_cast<double>(bytes) * 1e-9);
  return text;
}

}  // namespace

int64_t KvPageBytes(const spec::Config& config, int64_t number_bytes) {
  return 2 * config.layers * config.kv_heads * config.head_dim * kernels::kPageTokens * number_bytes;
}

int64_t PassBytes(const spec::Config& config, int64_t number_bytes) {
  const int64_t heads = 2 * config.heads + 2 * config.kv_heads;  // queries, keys, values, and what attention mixes
  const int64_t row = 2 * heads * config.head_dim + 7 * config.hidden_size + config.ffn;
  return kLibraryBytes + kChunkMax * row * number_bytes + kRowsMax * config.vocab * (4 + 2 * number_bytes);
}

base::Result<int64_t> KvPages(const spec::Config& config, int64_t number_bytes, const KvBudget& budget) {
  if (budget.percent < 1 || budget.percent > 100)
    return base::Fail("E_OPTION", "kv_memory_percent: found " + std::to_string(budget.percent) + ", expected 1 to 100");
  const int64_t page = KvPageBytes(config, number_bytes) + budget.beside_page_bytes;
  const int64_t pass = PassBytes(config, number_bytes) + budget.beside_bytes;
  const int64_t context_pages = (config.max_positions + kernels::kPageTokens - 1) / kernels::kPageTokens;
  const bool told = budget.pages > 0;
  const int64_t share = told ? budget.free_bytes : budget.free_bytes / 100 * budget.percent;
  const int64_t fit = std::max<int64_t>(0, (share - pass) / page - 1);  // one page takes what padding writes
  const int64_t least = told ? budget.pages : 1;
  if (fit < least) {
    const std::string advice = told && fit > 0
                                   ? "ask for at most kv_tokens=" + std::to_string(fit * kernels::kPageTokens)
                                   : "free memory of the device, or serve with the device cpu";
    const std::string what = budget.beside_bytes > 0 ? "keys and values, and the router, on the device: found "
                                                     : "keys and values on the device: found ";
    return base::Fail("E_MEMORY", what + Gigabytes(budget.free_bytes) + " free beside the weights, expected at least " +
                                      Gigabytes(pass + (least + 1) * page) + " for " +
                                      std::to_string(least * kernels::kPageTokens) + " tokens; " + advice);
  }
  return told ? budget.pages : std::min(fit, budget.texts_max * context_pages);
}

}  // namespace outrider::serve_gpu
