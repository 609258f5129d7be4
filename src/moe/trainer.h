#pragma once
// The two stages of a round (Read-ME, arXiv 2410.19123, section 3.5 of the method). A step is a function of the weights
// and of (seed, round, step): nothing else is remembered, so a restored trainer goes on with the same bits.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "moe/gradient_mass.h"
#include "moe/layerwise.h"
#include "moe/losses.h"
#include "moe/optimizer.h"
#include "moe/options.h"
#include "moe/routed_model.h"
#include "moe/token_data.h"
#include "outrider/coexec.h"

namespace outrider::moe {

struct StepReport {
  double loss = 0;        // what was minimised, mean per token
  double nats = 0;        // cross-entropy per token; 0 in router stages
  double divergence = 0;  // KL(teacher || student) per token; 0 without a teacher
  double gradient_norm = 0;
  double rate = 0;
  int64_t tokens = 0;
  std::optional<Row> coexec = {};  // nothing without Options::coexec
};

// The model that is distilled from; its weights in the compute dtype.
struct Teacher {
  model::Config config;
  model::Parameters parameters;
};

class Trainer {
 public:
  // All stay the caller's and must outlive the trainer. teacher: nullptr, none.
  Trainer(const Options& options, const TokenData& data, RoutedModel& model, const Teacher* teacher);

  // One optimizer step of the router on targets from the unmasked model as it is now.
  base::Result<StepReport> RouterStep(int64_t round, int64_t step, int64_t steps);
  // One optimizer step of everything but the router, under the masks that the router chooses; with router.joint one of
  // the router too, on what the same passes found.
  base::Result<StepReport> ExpertStep(int64_t round, int64_t step, int64_t steps);

  // Masters, router and moments of both; names start with "backbone." and "router.". Not copies.
  NamedTensors State() const;
  base::Result<void> Restore(const NamedTensors& state);

 private:
  bool ByGradient() const {
    return targets_ && router_loss_ == RouterLoss::kCoverage && options_.coverage_mass == "gradient";
  }
  bool Joint() const { return options_.router_joint != "off"; }
  // Learning rate of the router (else of everything else) at a step of a stage.
  double Rate(bool router, int64_t round, int64_t step, int64_t steps) const;
  std::vector<TokenBatch> MicroBatches(Use use, int64_t round, int64_t step) const;
  // Calls `step`, as one step of co-execution where the options say so. What only the host does comes before it.
  base::Result<StepReport> Run(const std::string& stage, const std::function<base::Result<StepReport>()>& step) const;
  base::Result<StepReport> TuneRouter(const std::vector<TokenBatch>& batches, double rate);
  base::Result<StepReport> TuneExperts(const std::vector<TokenBatch>& batches, double rate, double router_rate);
  // With the optional regularisers; z [B, S, N].
  at::Tensor Regularised(at::Tensor loss, const at::Tensor& z) const;
  at::Tensor RouterMicroStep(const TokenBatch& batch, double share);
  // Gradients of the router from what the last pass of the experts measured; `share` of the step's tokens.
  void JointMicroStep(const TokenBatch& batch, double share);
  // The nats of the result are their sum.
  TokenLoss ExpertMicroStep(const TokenBatch& batch, int64_t tokens_of_step);

  const Options& options_;
  const std::string program_;  // of co-execution: another trainer's steps are another program's
  const TokenData& data_;
  RoutedModel& model_;
  const Teacher* teacher_;
  RoutedModel::Masking masking_;
  RouterLoss router_loss_;
  std::optional<RouterTargets> targets_;    // of model_.router
  std::optional<LayerwiseLoss> layerwise_;  // of model_.layer_router, for one step
  GradientProbes probes_;
  std::optional<KeptMass> kept_;  // with router.joint
  std::optional<AdamW> backbone_, router_;
};

RouterLoss RouterLossNamed(const std::string& name);

}  // namespace outrider::moe
