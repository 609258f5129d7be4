#pragma once
// The tensors of a Hugging Face model folder: model.safetensors, or the shards that model.safetensors.index.json names.

#include <cstddef>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "files/mapped_file.h"
#include "files/safetensors.h"

namespace outrider::model {

struct StoredTensor {
  files::TensorEntry entry;
  std::string file;                  // path, for messages
  std::span<const std::byte> bytes;  // as long as the store lives
};

class TensorStore {
 public:
  // Maps all files and checks their headers; reads no weight. All missing shards are named in one message.
  // Codes: E_SHARDS, E_SAFETENSORS, E_READ.
  static base::Result<TensorStore> Open(const std::string& folder);

  const std::map<std::string, StoredTensor>& Tensors() const { return tensors_; }
  // The file that messages about the whole name: the index, or the only file.
  const std::string& Root() const { return root_; }

 private:
  explicit TensorStore(std::string root) : root_(std::move(root)) {}
  base::Result<void> AddFile(const std::string& path);

  std::string root_;
  std::vector<files::MappedFile> files_;
  std::map<std::string, StoredTensor> tensors_;
};

// SHA-256 over the weights of a model folder, whatever files they lie in: for each tensor in the order of names, name,
// dtype as in safetensors, sizes in decimal with commas between, a zero byte behind each of the three, then its bytes.
// Codes as TensorStore::Open.
base::Result<std::string> WeightsSha256(const std::string& folder);

// The first element that is NaN or infinite, and how many are. Nothing when all are finite, or no floats.
struct NonFinite {
  int64_t first = 0, count = 0;
};
std::optional<NonFinite> FindNonFinite(const StoredTensor& tensor);

// "[2, 3]"
std::string ShapeText(std::span<const int64_t> shape);

}  // namespace outrider::model
