// The C++ twin of examples/coexec/digits_cnn.py: a small residual CNN with BatchNorm, trained with Adam on handwritten
// digits, ordinary libtorch code with no Python in the process. StepScope is all that co-execution needs.
//
//   python examples/cpp/export_digits.py digits.csv
//   build/dev/examples/digits_cnn --data digits.csv [--steps 200] [--eager] [--lane inner] [--state state.txt]
//
// --eager runs without co-execution; --lane (auto, inner, outer) picks how steps are covered; --state writes every bit of
// the final state, one named line each, so that two runs can be compared with `cmp`.

#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <limits>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "outrider/coexec.h"

namespace {

constexpr int64_t kSide = 8;
constexpr int64_t kPixels = kSide * kSide;
constexpr int64_t kBatch = 16;
constexpr int64_t kFirstCoveredStep = 20;

struct Options {
  std::string data_path;
  std::string state_path;
  int64_t steps = 200;
  int64_t lane = 0;
  bool eager = false;
};

struct Digits {
  std::vector<float> pixels;  // [n, 64], 0..1
  std::vector<int64_t> labels;

  int64_t Count() const { return static_cast<int64_t>(labels.size()); }
};

Digits LoadDigits(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path + "; write it with examples/cpp/export_digits.py");
  Digits digits;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string field;
    std::getline(fields, field, ',');
    digits.labels.push_back(std::stol(field));
    while (std::getline(fields, field, ',')) digits.pixels.push_back(std::stof(field) / 16.0f);
    if (static_cast<int64_t>(digits.pixels.size()) != digits.Count() * kPixels) {
      throw std::runtime_error(path + ": line " + std::to_string(digits.Count()) + " does not hold 64 pixels");
    }
  }
  return digits;
}

// Drops square blocks of a feature map; a schedule changes `keep` while training runs.
struct DropBlockImpl : torch::nn::Module {
  static constexpr int64_t kBlock = 3;
  double keep = 1.0;

  torch::Tensor forward(torch::Tensor x) {
    if (!is_training() || keep >= 1.0) return x;
    const double rate = (1.0 - keep) / (kBlock * kBlock);
    auto seeds = (torch::rand_like(x) < rate).to(x.dtype());
    auto kept = 1.0 - torch::max_pool2d(seeds, kBlock, /*stride=*/1, /*padding=*/kBlock / 2);
    return x * kept * (static_cast<double>(kept.numel()) / kept.sum());
  }
};
TORCH_MODULE(DropBlock);

torch::nn::Conv2d MakeConvolution(int64_t in, int64_t out, int64_t stride) {
  return torch::nn::Conv2d(torch::nn::Conv2dOptions(in, out, 3).stride(stride).padding(1));
}

// Two convolution stages, one residual block, a linear head: [n, 1, 8, 8] -> [n, 10].
struct DigitsNetImpl : torch::nn::Module {
  explicit DigitsNetImpl(int64_t width = 8)
      : stem(register_module("stem", MakeConvolution(1, width, 1))),
        stem_norm(register_module("stem_norm", torch::nn::BatchNorm2d(width))),
        down(register_module("down", MakeConvolution(width, 2 * width, 2))),
        down_norm(register_module("down_norm", torch::nn::BatchNorm2d(2 * width))),
        body(register_module("body", MakeConvolution(2 * width, 2 * width, 1))),
        body_norm(register_module("body_norm", torch::nn::BatchNorm2d(2 * width))),
        drop_block(register_module("drop_block", DropBlock())),
        head(register_module("head", torch::nn::Linear(2 * width, 10))) {}

  torch::Tensor forward(torch::Tensor x) {
    x = torch::relu(stem_norm(stem(x)));
    x = torch::relu(down_norm(down(x)));
    x = x + drop_block(torch::relu(body_norm(body(x))));
    return head(x.mean({2, 3}));
  }

  torch::nn::Conv2d stem;
  torch::nn::BatchNorm2d stem_norm;
  torch::nn::Conv2d down;
  torch::nn::BatchNorm2d down_norm;
  torch::nn::Conv2d body;
  torch::nn::BatchNorm2d body_norm;
  DropBlock drop_block;
  torch::nn::Linear head;
};
TORCH_MODULE(DigitsNet);

// Fills one reused buffer with augmented images; the same memory is every step's batch.
class Batches {
 public:
  explicit Batches(Digits digits) : digits_(std::move(digits)), buffer_(kBatch * kPixels), labels_(kBatch), random_(0) {}

  void Fill() {
    std::uniform_int_distribution<int64_t> any_row(0, digits_.Count() - 1);
    std::uniform_int_distribution<int64_t> any_shift(-1, 1);
    std::normal_distribution<float> noise(0.0f, 0.02f);
    for (int64_t slot = 0; slot < kBatch; ++slot) {
      const int64_t row = any_row(random_);
      const int64_t dy = any_shift(random_);
      const int64_t dx = any_shift(random_);
      for (int64_t place = 0; place < kPixels; ++place) {
        const int64_t y = (place / kSide + dy + kSide) % kSide;
        const int64_t x = (place % kSide + dx + kSide) % kSide;
        buffer_[slot * kPixels + place] = digits_.pixels[row * kPixels + y * kSide + x] + noise(random_);
      }
      labels_[slot] = digits_.labels[row];
    }
  }

  // The batch is used up: whoever reads the buffer from now on reads NaN.
  void Spoil() { std::fill(buffer_.begin(), buffer_.end(), std::numeric_limits<float>::quiet_NaN()); }

  torch::Tensor Images() { return torch::from_blob(buffer_.data(), {kBatch, 1, kSide, kSide}); }
  torch::Tensor Labels() { return torch::from_blob(labels_.data(), {kBatch}, torch::kLong); }

 private:
  Digits digits_;
  std::vector<float> buffer_;
  std::vector<int64_t> labels_;
  std::mt19937 random_;
};

// Writes named values bit for bit, one line each.
class StateWriter {
 public:
  explicit StateWriter(const std::string& path) : out_(path) {
    if (!out_) throw std::runtime_error("cannot write " + path);
  }

  void Write(const std::string& name, const torch::Tensor& tensor) {
    if (!tensor.defined()) {
      out_ << name << " undefined\n";
      return;
    }
    out_ << name << " version " << tensor._version() << " sizes " << tensor.sizes() << " bytes ";
    const auto plain = tensor.detach().contiguous();
    const auto* bytes = static_cast<const unsigned char*>(plain.const_data_ptr());
    out_ << std::hex << std::setfill('0');
    for (size_t k = 0; k < plain.nbytes(); ++k) out_ << std::setw(2) << static_cast<int>(bytes[k]);
    out_ << std::dec << '\n';
  }

  void Write(const std::string& name, const std::vector<double>& numbers) {
    out_ << name << std::hexfloat;
    for (double number : numbers) out_ << ' ' << number;
    out_ << std::defaultfloat << '\n';
  }

 private:
  std::ofstream out_;
};

class Trainer {
 public:
  explicit Trainer(Digits digits) : batches_(std::move(digits)), optimizer_(net_->parameters(), 1e-3) {}

  void Step(int64_t step) {
    net_->drop_block->keep = 1.0 - 0.05 * static_cast<double>((step >= 8) + (step >= 64) + (step >= 128));
    batches_.Fill();
    optimizer_.zero_grad();
    auto loss = torch::cross_entropy_loss(net_(batches_.Images()), batches_.Labels());
    loss.backward();
    optimizer_.step();
    batches_.Spoil();
    losses_.push_back(loss.item<double>());
  }

  const std::vector<double>& Losses() const { return losses_; }

  void WriteState(const std::string& path) {
    StateWriter writer(path);
    writer.Write("random", at::detail::getDefaultCPUGenerator().get_state());
    writer.Write("losses", losses_);
    for (const auto& item : net_->named_buffers()) writer.Write("buffer." + item.key(), item.value());
    for (const auto& item : net_->named_parameters()) {
      writer.Write("param." + item.key(), item.value());
      writer.Write("grad." + item.key(), item.value().grad());
      const auto& state = static_cast<const torch::optim::AdamParamState&>(
          *optimizer_.state().at(item.value().unsafeGetTensorImpl()));
      writer.Write("exp_avg." + item.key(), state.exp_avg());
      writer.Write("exp_avg_sq." + item.key(), state.exp_avg_sq());
      writer.Write("adam_step." + item.key(), {static_cast<double>(state.step())});
    }
  }

 private:
  Batches batches_;
  DigitsNet net_;
  torch::optim::Adam optimizer_;
  std::vector<double> losses_;
};

// One line of JSON about coverage, for people and for the tests.
void PrintReport(int64_t steps) {
  int64_t device_ops = 0, covered_ops = 0, host_ops = 0;
  std::map<std::string, int64_t> lanes;
  const auto rows = outrider::Rows();
  for (size_t k = kFirstCoveredStep; k < rows.size(); ++k) {
    device_ops += rows[k].device_ops;
    covered_ops += rows[k].covered_ops;
    host_ops += rows[k].host_ops;
    ++lanes[rows[k].lane];
  }
  std::cout << "{\"steps\": " << steps << ", \"rows\": " << rows.size() << ", \"device_ops\": " << device_ops
            << ", \"covered_ops\": " << covered_ops << ", \"host_ops\": " << host_ops << ", \"lanes\": {";
  const char* separator = "";
  for (const auto& [lane, count] : lanes) {
    std::cout << separator << '"' << lane << "\": " << count;
    separator = ", ";
  }
  std::cout << "}, \"note\": " << std::quoted(rows.empty() ? "" : rows.back().note) << "}\n";
}

int64_t LaneNamed(const std::string& name) {
  if (name == "auto") return 0;
  if (name == "inner") return 1;
  if (name == "outer") return 2;
  throw std::runtime_error("no lane is called " + name);
}

Options ParseOptions(int argc, char** argv) {
  Options options;
  for (int k = 1; k < argc; ++k) {
    const std::string name = argv[k];
    if (name == "--eager") {
      options.eager = true;
      continue;
    }
    if (k + 1 == argc) throw std::runtime_error(name + " needs a value");
    const std::string value = argv[++k];
    if (name == "--data") options.data_path = value;
    else if (name == "--state") options.state_path = value;
    else if (name == "--steps") options.steps = std::stol(value);
    else if (name == "--lane") options.lane = LaneNamed(value);
    else throw std::runtime_error("unknown option " + name);
  }
  if (options.data_path.empty()) throw std::runtime_error("--data digits.csv is needed");
  return options;
}

void Run(const Options& options) {
  at::set_num_threads(1);
  torch::manual_seed(0);
  if (!options.eager) outrider::SetOption("lane", options.lane);
  Trainer trainer(LoadDigits(options.data_path));
  for (int64_t step = 0; step < options.steps; ++step) {
    std::optional<outrider::StepScope> scope;
    if (!options.eager) scope.emplace("train");
    trainer.Step(step);
  }
  if (!options.eager) outrider::Flush();
  std::cout << "first loss " << trainer.Losses().front() << ", last loss " << trainer.Losses().back() << '\n';
  if (!options.eager) PrintReport(options.steps);
  if (!options.state_path.empty()) trainer.WriteState(options.state_path);
  if (!options.eager) outrider::Leave();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Run(ParseOptions(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "digits_cnn: " << error.what() << '\n';
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
