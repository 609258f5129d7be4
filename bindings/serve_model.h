#pragma once
// From model files to what the serving engine runs.

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "serve/cpu/cpu_executor.h"
#include "serve/executor.h"
#include "spec/config.h"

struct ServedModel {
  outrider::spec::Config config;
  double tau = 0;  // of the router
  std::unique_ptr<outrider::serve::Executor> executor;
  std::unique_ptr<outrider::serve::Pregate> pregate;  // null without experts
};

struct ServingOptions {
  std::string folder;
  std::string parent;  // of a folder without weights; else empty
  std::string format;  // of the weights: f32, bf16 or int8
  int threads = 1;     // of the executor, that of the caller included
  outrider::serve::PassLimits limits;
  std::string layer_router;  // a file: experts by layer, a baseline (CpuModel::Pack), instead of the folder's router
};

// A dense model folder, or a refactored model. Executor and pregate share their threads: one thread calls both. Codes:
// E_OPTION a format or a number of threads; E_CONFIG, E_EXPERTS, E_LIMITS what serving does not do; those of the model
// reader and of moe::OpenArtifact.
outrider::base::Result<ServedModel> OpenForServing(const ServingOptions& options);
