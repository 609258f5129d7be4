#pragma once
// Weights from and to Hugging Face model folders.

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>

#include "base/result.h"
#include "files/disk.h"
#include "model/parameters.h"

namespace outrider::model {

// FOLDER/model.safetensors, or the shards of its index, in `dtype` on `device`. Works on read-only folders.
// Codes: E_SHARDS files missing; E_TENSORS tensors missing, extra, or of a shape or dtype that the config does not
// give; E_NAN a value that is no finite number; E_SAFETENSORS, E_READ.
base::Result<Parameters> LoadParameters(const std::string& folder, const Config& config, at::ScalarType dtype,
                                        at::Device device = at::kCPU);

struct SaveOptions {
  int64_t shard_bytes_max = int64_t{4} << 30;  // a larger tensor gets a file of its own
  at::ScalarType dtype = at::kBFloat16;
};

// Writes the weights into the existing `folder`, an index last when there are several files; each file is complete or
// absent. Files of another shape of the same model are not removed. Code: E_WRITE.
base::Result<void> SaveParameters(const std::string& folder, const Config& config, const Parameters& parameters,
                                  const SaveOptions& options = {}, files::Disk& disk = files::Disk::Real());

// "bfloat16", "float16", "float32"; code: E_DTYPE.
base::Result<at::ScalarType> DtypeNamed(const std::string& name);

}  // namespace outrider::model
