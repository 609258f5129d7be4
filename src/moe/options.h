#pragma once
// Everything that decides the result of a refactoring, as one flat JSON object: {"experts.count": 8, "seed": 1, ...}.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace outrider::moe {

struct Options {
  // Files. `teacher` is a model folder, or "parent" for the untouched parent.
  std::string model, data, out, teacher;
  std::string device = "cpu", dtype = "float32";  // dtype: of the compute copy; masters are fp32
  int64_t seed = 0;

  // Experts. kind: coverage | published | random | carved | static | contextual | dense. statistic: l1 | l1_out |
  // fluctuation | coverage (static only: one coverage expert) | best (static only: the one with the lowest loss on
  // valid before tuning) | best_of_three (the same without coverage).
  std::string experts_kind = "coverage", experts_statistic = "l1";
  int64_t experts_count = 8;  // coverage, random; carved: the routed ones; published has one per domain
  double experts_keep = 0.5;  // share of all channels that a token uses; of each layer's with ratio uniform
  std::string experts_ratio =
      "uniform";  // uniform | measured: layers that matter more keep more | global: compared by mass
  int64_t calibration_samples = 8, calibration_tokens = 1024;  // per domain; tokens of one sample
  int64_t coverage_rounds = 15;
  double coverage_sink = 64;                   // CoverageOptions::sink_factor
  std::string coverage_granularity = "token";  // token | window:W | document
  std::string coverage_mass = "gradient";      // of a channel: activation | gradient (GradientMass)
  int64_t carved_top = 2;                      // routed experts that a token uses in each layer

  // Routing. kind: router | layerwise | random | domain | none. loss: coverage | paper | code | code_abs.
  std::string routing_kind = "router";
  double routing_tau = 0;  // nats
  int64_t router_width = 256, router_heads = 4;
  std::string router_scale = "sqrt", router_embedding = "tied", router_loss = "coverage";
  bool router_attention = true;
  // off | coverage: the router learns in expert steps too, from gradients that these have anyway, to name the expert
  // that keeps most of |h * dL/dh|.
  std::string router_joint = "off";
  double router_balance = 0, router_stay = 0;  // weights of the regularisers

  // Tuning: `rounds` times a router stage and an expert stage, then a last router stage.
  int64_t rounds = 4;
  int64_t router_steps = 38, router_last_steps = 0, expert_steps = 152;
  int64_t batch = 64, sequence = 2048;  // texts per optimizer step; tokens per text
  int64_t micro_batch = 8;              // texts per forward pass
  int64_t chunk = 4096;                 // tokens whose logits exist at a time
  double router_rate = 5e-4, expert_rate = 1e-4, round_decay = 0.8;
  double weight_decay = 0.01, clip_norm = 1.0;
  double distill = 0;                      // weight of KL(teacher || student)
  std::string tune = "full";               // full | adapter:R, pairs of rank R beside a frozen parent
  std::string adapter_dtype = "bfloat16";  // of their file: bfloat16 | int8
  std::string adapter_parts = "all";       // which matrices of the layers have a pair: all | ffn
  bool deterministic = false;              // the same bits on a GPU as well; on a CPU they always are

  // What does not change the result.
  int64_t checkpoint_steps = 50;  // optimizer steps between checkpoints
  double seconds_max = 0;         // then stop behind a checkpoint; 0: never
  int64_t steps_max = 0;          // the same, in optimizer steps of this call
  int64_t eval_tokens = 65536;    // per domain and split
  std::string eval_taus;          // hysteresis in nats, comma between: the test split is measured with each of them too
  int64_t trace_tokens = 16384;   // of these, on test, the expert ids of at most so many go into routes.safetensors
  bool write_model = true;        // the model behind the last stage, in out/model
  bool coexec = false;            // steps are co-executed: the same bits, see docs/guide/coexec.md
};

// Fields that are not named keep their default, or that of "preset": "outrider" (coverage experts, tied router) or
// "readme" (as published). Code E_OPTION: an unknown name, another type or a value out of range; names it.
base::Result<Options> ParseOptions(std::string_view json);

// Tokens of a unit of coverage.granularity; 0: documents.
int64_t WindowTokens(const Options& options);

// Rank of `tune`; 0: everything is tuned.
int64_t AdapterRank(const Options& options);
// The values of eval_taus.
std::vector<double> EvalTaus(const Options& options);

// All fields, sorted by name.
std::string ToJson(const Options& options);

// The first field that differs and changes the result, as "name: found A, expected B"; empty if there is none.
std::string Difference(const Options& found, const Options& expected);

}  // namespace outrider::moe
