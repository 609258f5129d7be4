#pragma once
// Hashes that name paths. They depend on ids only, so equal walks give equal hashes in every run.

#include <cstdint>
#include <span>

#include <xxhash.h>

#include "trace/op_record.h"

namespace outrider::trace {

inline constexpr uint64_t kEmptyPathHash = 0;

// Adds one number to a hash.
inline uint64_t MixHash(uint64_t hash, uint64_t value) { return XXH3_64bits_withSeed(&value, sizeof(value), hash); }

// Adds a node and the producer of each of its inputs.
inline uint64_t MixWiring(uint64_t hash, NodeId node, std::span<const Input> inputs) {
  hash = MixHash(hash, node.value);
  for (const Input& input : inputs) {
    if (input.origin == Origin::kValue) hash = MixHash(hash, uint64_t{input.producer.value} << 32 | input.index);
  }
  return hash;
}

}  // namespace outrider::trace
