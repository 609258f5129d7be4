// Trains one weight for a few steps, plainly and inside StepScope, and compares bit for bit.

#include <torch/torch.h>

#include <cstdio>
#include <memory>

#include "outrider/coexec.h"

namespace {

constexpr int kSteps = 12;

torch::Tensor Train(bool coexec) {
  const torch::Tensor input = torch::arange(12, torch::kFloat32).reshape({4, 3});
  torch::Tensor weight = torch::full({3, 2}, 0.5F, torch::requires_grad());
  torch::optim::SGD optimizer({weight}, torch::optim::SGDOptions(0.001).momentum(0.9));
  for (int i = 0; i < kSteps; ++i) {
    const auto step = coexec ? std::make_unique<outrider::StepScope>("consumer") : nullptr;
    optimizer.zero_grad();
    input.mm(weight).pow(2).mean().backward();
    optimizer.step();
  }
  if (coexec) outrider::Leave();
  return weight.detach();
}

}  // namespace

int main() {
  const bool equal = torch::equal(Train(false), Train(true));
  const size_t rows = outrider::Rows().size();
  std::printf("equal to eager: %s; rows: %zu\n", equal ? "yes" : "no", rows);
  return equal && rows == kSteps ? 0 : 1;
}
