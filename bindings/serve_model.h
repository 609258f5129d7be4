#pragma once
// From model files to what the serving engine runs.

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "kernels/workers.h"
#include "serve/cpu/cpu_executor.h"
#include "serve/executor.h"
#include "spec/config.h"

struct ServedModel {
  outrider::spec::Config config;
  double tau = 0;      // of the router
  std::string device;  // what runs it, for people
  std::string format;  // of its weights
  std::unique_ptr<outrider::serve::Executor> executor;
  std::unique_ptr<outrider::serve::Pregate> pregate;    // null without experts
  std::shared_ptr<outrider::kernels::Workers> workers;  // of what runs on the processor
};

struct ServingOptions {
  std::string folder;
  std::string parent;  // of a folder without weights; else empty
  std::string device;  // cpu, cuda, or reference: the passes of cuda in plain operators on the CPU, for tests
  std::string format;  // of the weights: f32, bf16 or int8; empty: what the device takes best
  int threads = 1;     // on the processor, that of the caller included
  // kv_pages 0: on the CPU 16,384 tokens; on cuda what kv_memory_percent of the device memory that is free beside the
  // weights holds, but no more than texts_max texts of the whole context. route_pages 0: twice the kv_pages.
  outrider::serve::PassLimits limits;
  int64_t kv_memory_percent = 90;
  int64_t texts_max = 64;
  std::string layer_router;  // a file: experts by layer, a baseline (CpuModel::Pack), instead of the folder's router
};

// A dense model folder, or a refactored model, as it was read; on a device packed there. What is served of it may be
// many, one after the other or at once: on a device they share the weights.
struct LoadedModel;

// Codes: E_OPTION a device, a format or a number of threads; E_CUDA no such device, or a model that it does not take;
// E_MEMORY too little memory on the device; E_CONFIG what serving does not do; those of the model reader and of
// moe::OpenArtifact.
outrider::base::Result<std::shared_ptr<LoadedModel>> LoadForServing(const ServingOptions& options);
// Of `options` the sizes and the threads count; the device is that of loading, with cuda that of the router, too. One
// thread calls both. Codes: E_MEMORY, E_CUDA, E_CONFIG, E_EXPERTS, E_LIMITS.
outrider::base::Result<ServedModel> Serve(LoadedModel& loaded, const ServingOptions& options);
// Both in one.
outrider::base::Result<ServedModel> OpenForServing(const ServingOptions& options);
