#pragma once
// The router on a device that has memory of its own: what the host tells it, one launch after another. Two threads may
// not call at once.

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "serve/executor.h"
#include "serve/router/logits_router.h"

namespace outrider::serve {

// Tokens of one launch, as numbers in one piece of host memory.
struct RouteStage {
  static constexpr int64_t kTokensMax = 512, kTextsMax = 64;
  static constexpr int64_t kIds = 0, kPositions = kTokensMax, kTexts = 2 * kTokensMax, kPages = 3 * kTokensMax;

  int64_t tokens = 0;
  int64_t texts = 0;  // whose pages follow each other from kPages on, `table` for each
  int64_t table = 0;

  int64_t size() const { return kPages + texts * table; }
  static int64_t SizeMax(int64_t context);
};

class RouterDevice {
 public:
  virtual ~RouterDevice() = default;
  virtual int32_t* staging() = 0;  // [RouteStage::SizeMax(context)], on the host
  // Logits [tokens, experts] of what is staged, valid until the next call; keys and values are in their pages. Waits
  // for the device once. Codes: E_DEVICE it is lost.
  virtual base::Result<const float*> Run(const RouteStage& stage) = 0;
};

class StagedRouter : public LogitsRouter {
 public:
  StagedRouter(const RouterSpec& spec, const ModelShape& shape, std::unique_ptr<RouterDevice> device)
      : LogitsRouter(spec, shape), device_(std::move(device)) {}

  base::Result<void> Logits(std::span<const RouteRun> runs, std::span<float> logits) override;

 private:
  RouteStage Stage(const PassTokens& tokens, int64_t first);

  const std::unique_ptr<RouterDevice> device_;
};

}  // namespace outrider::serve
