#include "moe/losses.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace outrider::moe {
namespace {

// 3 experts over 8 channels. Channel 0 is permanent; experts 0, 1, 2 add {1, 2, 3}, {3, 4, 5}, {5, 6, 7}.
Masks ThreeExperts(int64_t layers = 1) {
  Masks masks(3, layers, 8);
  for (int64_t l = 0; l < layers; ++l) {
    masks.SetExpert(l, 0, std::vector<int64_t>{0, 1, 2, 3});
    masks.SetExpert(l, 1, std::vector<int64_t>{0, 3, 4, 5});
    masks.SetExpert(l, 2, std::vector<int64_t>{0, 5, 6, 7});
  }
  return masks;
}

at::Tensor Row(std::vector<float> values) { return at::tensor(values).unsqueeze(0); }

double LossOf(RouterLoss form, const at::Tensor& h, const at::Tensor& z, int64_t layers = 1) {
  RouterTargets targets(form, ThreeExperts(layers), std::vector<at::Tensor>(layers, at::ones({8})), at::kCPU);
  for (int64_t l = 0; l < layers; ++l) targets.Add(l, h);
  return targets.Loss(z).item<double>();
}

// Top 4 of |h|: channels 1, 2, 3, 4. Overlaps: expert 0 has {1, 2, 3}, expert 1 {3, 4}, expert 2 none.
const std::vector<float> kPaperRow = {0, -9, 8, -7, 6, 1, 1, 1};

TEST(RouterLosses, PaperIsReverseKlToTheSoftmaxOfOverlapCounts) {
  const double e3 = std::exp(3), e2 = std::exp(2), sum = e3 + e2 + 1;
  const double z[] = {0.5, 0, -1};
  const double zs = std::exp(0.5) + 1 + std::exp(-1);
  const double q[] = {e3 / sum, e2 / sum, 1 / sum};
  double expected = 0;
  for (int i = 0; i < 3; ++i) expected += std::exp(z[i]) / zs * (z[i] - std::log(zs) - std::log(q[i]));
  EXPECT_NEAR(LossOf(RouterLoss::kPaper, Row(kPaperRow), Row({0.5, 0, -1})), expected, 1e-5);
  EXPECT_NEAR(LossOf(RouterLoss::kPaper, Row(kPaperRow), Row({0.5, 0, -1}), 3), 3 * expected, 1e-5)
      << "summed over layers";
  EXPECT_NEAR(LossOf(RouterLoss::kPaper, Row(kPaperRow), Row({3, 2, 0})), 0, 1e-6) << "the target itself";
}

// n = 3 channels beside the permanent one; q = 2, 2, 1, 1, 0, so the first two ranks weigh 4/9 and 2/9.
double CodeLoss(const double (&scores)[3], const double (&z)[3]) {
  const double mean = (scores[0] + scores[1] + scores[2]) / 3;
  double s[3], zs = 0, ss = 0;
  int best = 0;
  for (int i = 0; i < 3; ++i) {
    s[i] = 10 * (scores[i] - mean);
    if (s[i] > s[best]) best = i;
    ss += std::exp(s[i]);
    zs += std::exp(z[i]);
  }
  double hard = 0, soft = 0;
  for (int i = 0; i < 3; ++i) {
    const double log_p = z[i] - std::log(zs);
    hard -= (0.5 * (i == best ? 1 : 0) + 0.5 / 3) * log_p;
    soft -= std::exp(s[i]) / ss * log_p;
  }
  return 0.75 * hard + 0.25 * soft;
}

TEST(RouterLosses, CodeRanksSignedValuesAndCodeAbsTheirSize) {
  // Signed, channels 4 and 2 lead; by size 1 and 2 do.
  const at::Tensor h = Row({0, -9, 8, -7, 8.5, 1, 1, 1});
  const double z[] = {1, 0.25, -0.5};
  EXPECT_NEAR(LossOf(RouterLoss::kCode, h, Row({1, 0.25, -0.5})), CodeLoss({2.0 / 9, 4.0 / 9, 0}, z), 1e-5);
  EXPECT_NEAR(LossOf(RouterLoss::kCodeAbs, h, Row({1, 0.25, -0.5})), CodeLoss({4.0 / 9, 2.0 / 9, 0}, z), 1e-5);
}

TEST(RouterLosses, CodeIgnoresThePermanentChannel) {
  // Channel 0 leads, but no expert gains from it; channel 6 is second and weighs 2/9.
  const double z[] = {0, 0, 1};
  EXPECT_NEAR(LossOf(RouterLoss::kCode, Row({9, 0, 0, 0, 0, 0, 5, 0}), Row({0, 0, 1})), CodeLoss({0, 0, 2.0 / 9}, z),
              1e-5);
}

TEST(RouterLosses, CoverageIsTheShareOfMassKept) {
  // Masses 1, 2, 0, 1, 0, 0, 4, 2 of 10 with the norms below: experts keep 0.4, 0.2 and 0.7.
  const at::Tensor h = Row({1, -1, 0, 1, 0, 0, -2, 2});
  const std::vector<at::Tensor> norms(2, at::tensor({1.F, 2.F, 1.F, 1.F, 1.F, 1.F, 2.F, 1.F}));
  RouterTargets targets(RouterLoss::kCoverage, ThreeExperts(2), norms, at::kCPU);
  targets.Add(0, h);
  targets.Add(1, at::eye(8).slice(0, 3, 4));  // all mass on channel 3: kept by 0 and 1
  const at::Tensor coverage = targets.Coverage();
  EXPECT_NEAR(coverage[0][0].item<double>(), (0.4 + 1) / 2, 1e-6);
  EXPECT_NEAR(coverage[0][1].item<double>(), (0.2 + 1) / 2, 1e-6);
  EXPECT_NEAR(coverage[0][2].item<double>(), 0.7 / 2, 1e-6);
  const double gap = std::exp(-150 * 0.1), far = std::exp(-150 * 0.35);
  const double expected = -(std::log(1 / 2.5) + (gap + far) * std::log(0.75 / 2.5)) / (1 + gap + far);
  EXPECT_NEAR(targets.Loss(Row({0, std::log(0.75F), std::log(0.75F)})).item<double>(), expected, 1e-5);
}

TEST(RouterLosses, WindowsShareTheirMeanAndStopAtTheEndOfAText) {
  RouterTargets targets(RouterLoss::kCoverage, ThreeExperts(), {at::ones({8})}, at::kCPU);
  targets.Add(0, at::eye(8).slice(0, 1, 7));  // two texts of 3 tokens: channels 1, 2, 3 and 4, 5, 6
  const at::Tensor before = targets.Coverage().clone();
  targets.Smooth(3, 2);
  const at::Tensor after = targets.Coverage();
  const at::Tensor first = (before[0] + before[1]) / 2, second = (before[3] + before[4]) / 2;
  EXPECT_TRUE(at::allclose(after, at::stack({first, first, before[2], second, second, before[5]})));
}

TEST(RouterLosses, GradientFlowsToTheLogitsOnly) {
  at::Tensor h = at::randn({5, 8}).requires_grad_(), z = at::randn({5, 3}).requires_grad_();
  RouterTargets targets(RouterLoss::kCoverage, ThreeExperts(), {at::ones({8})}, at::kCPU);
  targets.Add(0, h);
  targets.Loss(z).backward();
  EXPECT_GT(z.grad().abs().sum().item<double>(), 0);
  EXPECT_FALSE(h.grad().defined());
}

TEST(RouterRegularisers, HandComputed) {
  // One text of three tokens, two experts; probabilities 0.8 0.2, 0.6 0.4, 0.25 0.75.
  const at::Tensor p = at::tensor({0.8F, 0.2F, 0.6F, 0.4F, 0.25F, 0.75F}).view({1, 3, 2});
  const double used[] = {2.0 / 3, 1.0 / 3}, mean[] = {1.65 / 3, 1.35 / 3};
  EXPECT_NEAR(BalanceLoss(p.log()).item<double>(), 2 * (used[0] * mean[0] + used[1] * mean[1]), 1e-6);
  EXPECT_NEAR(StayLoss(p.log()).item<double>(), 1 - (0.8 * 0.6 + 0.2 * 0.4 + 0.6 * 0.25 + 0.4 * 0.75) / 2, 1e-6);
  // Texts are not neighbours of each other.
  const at::Tensor two = at::cat({p, p.flip(1)}, 0);
  EXPECT_NEAR(StayLoss(two.log()).item<double>(), StayLoss(p.log()).item<double>(), 1e-6);
}

struct Case {
  at::Tensor hidden, head, targets, teacher, teacher_head;
};

Case RandomCase() {
  at::manual_seed(1);
  return {at::randn({13, 6}), at::randn({11, 6}), at::randint(11, {13}, at::kLong), at::randn({13, 4}),
          at::randn({11, 4})};
}

// Both losses and gradients against the whole logits at once.
TEST(TokenLoss, EqualsTheLossOverWholeLogits) {
  for (const double weight : {0.0, 0.7}) {
    Case one = RandomCase(), two = RandomCase();
    for (Case* c : {&one, &two}) {
      c->hidden.requires_grad_();
      c->head.requires_grad_();
    }
    const TeacherLogits teacher = weight > 0 ? TeacherLogits{one.teacher, one.teacher_head, weight} : TeacherLogits{};
    const TokenLoss chunked = ChunkedTokenLoss(one.hidden, one.head, one.targets, teacher, 5, 1.0 / 13);
    chunked.objective.backward();

    const at::Tensor log_p = at::log_softmax(two.hidden.matmul(two.head.t()), -1);
    const at::Tensor log_q = at::log_softmax(two.teacher.matmul(two.teacher_head.t()), -1);
    const at::Tensor nats = -log_p.gather(1, two.targets.unsqueeze(1)).squeeze(1);
    const at::Tensor kl = (log_q.exp() * (log_q - log_p)).sum();
    const at::Tensor total = nats.sum() + weight * kl;
    (total / 13).backward();
    EXPECT_TRUE(at::allclose(chunked.total, total, 1e-5, 1e-5));
    EXPECT_TRUE(at::allclose(chunked.nats, nats, 1e-5, 1e-5));
    EXPECT_NEAR(chunked.divergence.item<double>(), weight > 0 ? kl.item<double>() : 0, 1e-4);
    EXPECT_TRUE(at::allclose(one.hidden.grad(), two.hidden.grad(), 1e-5, 1e-6));
    EXPECT_TRUE(at::allclose(one.head.grad(), two.head.grad(), 1e-5, 1e-6));
  }
}

TEST(TokenLoss, WithoutGradientsNothingIsRecorded) {
  Case c = RandomCase();
  c.hidden.requires_grad_();
  const at::NoGradGuard no_grad;
  const TokenLoss loss = ChunkedTokenLoss(c.hidden, c.head, c.targets, {}, 4);
  EXPECT_FALSE(loss.objective.defined());
  EXPECT_NEAR(loss.nats.sum().item<double>(), loss.total.item<double>(), 1e-4);
}

}  // namespace
}  // namespace outrider::moe
