#pragma once
// outrider_adapter.safetensors: the pairs of an adapter without their parent (docs/formats/adapter.md).

#include <string>
#include <utility>

#include <c10/core/Device.h>

#include "base/result.h"
#include "model/config.h"
#include "moe/adapter.h"

namespace outrider::moe {

struct AdapterHeader {
  int64_t rank = 0;
  std::string dtype = "bfloat16";  // bfloat16 | int8
  std::string base_sha256;         // model::WeightsSha256 of the parent
};

// Complete or absent. Rounds to the header's dtype. Code: E_WRITE.
base::Result<void> SaveAdapter(const std::string& path, const Adapter& adapter, const AdapterHeader& header);

// Pairs in fp32 on `device`. Codes: E_ADAPTER for anything that is no adapter of a model of this shape, naming the
// tensor; E_READ, E_SAFETENSORS.
base::Result<std::pair<Adapter, AdapterHeader>> LoadAdapter(const std::string& path, const model::Config& config,
                                                            at::Device device);

}  // namespace outrider::moe
