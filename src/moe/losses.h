#pragma once
// What the two stages minimise: routing distillation (Read-ME, arXiv 2410.19123, eq. 4 and two other forms) and
// next-token cross-entropy whose logits never exist as a whole.

#include <cstdint>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "moe/masks.h"

namespace outrider::moe {

enum class RouterLoss : uint8_t {
  kPaper,     // KL(router || softmax of how many of the token's top channels an expert has), summed over layers
  kCode,      // the authors' program: rank weights of the signed activation, hard and soft targets
  kCodeAbs,   // kCode on absolute values
  kCoverage,  // ours: cross-entropy to softmax(150 * share of activation mass that an expert keeps)
};

constexpr double kCoverageSharpness = 150;

// Masks of one layer as a matrix [N, D] of 0 and 1.
at::Tensor MaskMatrix(const Masks& masks, int64_t layer, at::ScalarType dtype, at::Device device);

// Share of activation mass per channel: |h| * column_norms, every row divided by its sum. h [T, D], column_norms [D]
// (2-norms of down_proj's columns); fp32 [T, D].
at::Tensor ActivationMass(const at::Tensor& h, const at::Tensor& column_norms);

// Collects, layer by layer, what the loss needs from the unmasked activations of T tokens: one [T, N] matrix.
class RouterTargets {
 public:
  // column_norms: per layer [D]; used by kCoverage only.
  RouterTargets(RouterLoss form, const Masks& masks, const std::vector<at::Tensor>& column_norms, at::Device device);

  // For activations of other weights than before; used by kCoverage only.
  void SetColumnNorms(std::vector<at::Tensor> column_norms) { column_norms_ = std::move(column_norms); }

  // h [T, D]: input of down_proj of `layer`, no expert masked. Every layer once, with the same tokens.
  void Add(int64_t layer, const at::Tensor& h);
  // kCoverage: the same from mass [T, D] fp32 of another kind.
  void AddMass(int64_t layer, const at::Tensor& mass);
  // kCoverage: all layers at once, from the mass kept [T, N] and in all [T, 1], summed over them.
  void SetKept(const at::Tensor& kept, const at::Tensor& total);
  // kCoverage: [T, N] share of mass kept, mean over layers. Only after all layers.
  at::Tensor Coverage() const;
  // Gives all tokens of a window the window's mean coverage; windows never cross a text of `sequence` tokens.
  void Smooth(int64_t sequence, int64_t window);
  // z [T, N] router logits; mean over tokens, differentiable in z.
  at::Tensor Loss(const at::Tensor& z) const;
  void Clear() { sum_ = at::Tensor(); }

 private:
  at::Tensor PaperTerm(int64_t layer, const at::Tensor& h) const;
  at::Tensor CodeTerm(int64_t layer, const at::Tensor& h) const;

  RouterLoss form_;
  int64_t layers_, experts_;
  std::vector<int64_t> active_, specific_count_;  // per layer, mean over experts
  std::vector<at::Tensor> masks_, specific_, column_norms_;
  at::Tensor sum_;
};

// Optional regularisers of the router; z [B, S, N] logits of B texts, differentiable scalars.
// Balance: N * sum_i f_i * mean_t p_ti with f_i the share of tokens whose best expert is i, a constant in the gradient.
// 1 when all experts are used alike.
at::Tensor BalanceLoss(const at::Tensor& z);
// Stay: mean over neighbours of 1 - sum_i p_ti p_(t-1)i. Needs S >= 2.
at::Tensor StayLoss(const at::Tensor& z);

struct TokenLoss {
  at::Tensor total;       // scalar: sum over tokens of CE + weight * KL(teacher || student), nats
  at::Tensor nats;        // [T] cross-entropy per token
  at::Tensor divergence;  // scalar: sum of KL, 0 without a teacher
  // Scalar with the gradients of scale * total, for backward(); its value means nothing. Undefined where hidden and
  // head need none.
  at::Tensor objective;
};

struct TeacherLogits {
  at::Tensor hidden;  // [T, d_teacher] after the teacher's final norm; undefined: no teacher
  at::Tensor head;    // [V, d_teacher]
  double weight = 0;  // lambda
};

// hidden [T, d] and head [V, d] in one dtype; targets [T] int64. Logits exist for `chunk` tokens at a time, and their
// gradients are made in the same pass. There is no autograd function of our own in it: co-execution covers operators.
TokenLoss ChunkedTokenLoss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
                           const TeacherLogits& teacher, int64_t chunk, double scale = 1);

}  // namespace outrider::moe
