#pragma once
// A signature is what two calls must share to be the same node: operator, structural arguments, argument pattern,
// environment. Scalars (late-bound) and sizes are left out; sizes select a shape class of the signature.

#include <ATen/core/ivalue.h>
#include <c10/util/SmallVector.h>

#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "seam/env.h"
#include "seam/geometry.h"
#include "seam/op_info.h"
#include "trace/op_record.h"

namespace outrider::seam {

using Stack = torch::jit::Stack;

// One output of an operator as recorded (or inferred): enough to build a placeholder.
struct OutputSpec {
  Geometry geometry;
  size_t nbytes = 0;         // of the storage, when it is a new one
  int alias_input = -1;      // shares the storage of this tensor slot
  int alias_output = -1;     // shares the storage of this earlier output
  int same_as_input = -1;    // is the very object in this tensor slot
};

struct ReturnSpec {
  // kIdlePosition: see IsIdlePosition; no output, the program gets a zero.
  enum class Kind : uint8_t { kWrittenArgument, kTensor, kTensorList, kNumber, kIdlePosition };
  Kind kind = Kind::kTensor;
  int64_t number = 0;  // kNumber
  std::vector<OutputSpec> outputs;
};

// Everything that follows from (signature, input geometries, sizes). Immutable once published; the graph runner reads it.
struct ShapeClass {
  std::vector<Geometry> inputs;     // per tensor slot
  std::vector<int64_t> sizes;       // flattened kSize and kSizeList arguments
  std::vector<ReturnSpec> returns;
  std::vector<std::pair<int, int>> version_bumps;  // (tensor slot, bumps made by the kernel itself)
  size_t output_count = 0;
  bool silent_calls_only = false;  // a kIdlePosition is among the returns: not for calls that draw
};

// A borrowed view of one call: its arguments on the stack and its tensor slots.
struct Call {
  OpInfo* info = nullptr;
  c10::IValue* args = nullptr;                     // info->args.size() of them
  c10::SmallVector<c10::TensorImpl*, 12> tensors;  // nullptr: undefined or None
  c10::SmallVector<bool, 12> writes;
  c10::SmallVector<int16_t, 10> tensor_counts;     // per argument; -1: not a tensor argument
};

class Signature {
 public:
  Signature(const Call& call, const Env& env);

  // Structural equality of the call with this signature.
  bool Matches(const Call& call, const Env& env) const;
  const OpInfo& Op() const { return *info_; }
  OpInfo& MutableOp() const { return *info_; }
  const Env& Environment() const { return env_; }

  // nullptr when this combination of shapes has not been seen.
  const ShapeClass* FindShapes(const Call& call);
  const ShapeClass* AddShapes(std::unique_ptr<ShapeClass> shapes, const Call& call);

  // Whether Meta inference agreed with a recorded run, by the layout of the inputs; only where it did it may stand for one.
  std::unordered_map<uint64_t, bool> inference_agrees;
  trace::SignatureId id;

 private:
  OpInfo* info_;
  Env env_;
  std::vector<c10::IValue> structural_;  // per argument, None where not structural
  c10::SmallVector<int16_t, 10> tensor_counts_;
  c10::SmallVector<bool, 12> defined_;
  const ShapeClass* recent_ = nullptr;
  std::unordered_multimap<uint64_t, std::unique_ptr<ShapeClass>> shapes_;
};

// Interns signatures. Imperative thread only; signatures live as long as the table.
class SignatureTable {
 public:
  Signature& Intern(const Call& call, const Env& env);
  Signature& At(trace::SignatureId id) { return *signatures_[id.value]; }
  size_t Size() const { return signatures_.size(); }

 private:
  std::vector<std::unique_ptr<Signature>> signatures_;
  std::unordered_multimap<uint64_t, Signature*> by_hash_;
};

// True for a result that says where in the generator's sequence a call began which drew nothing: a 0-dim tensor of the host
// that nobody reads, beside results on a device. Its bytes are undefined; inside a capture it lies on the device.
bool IsIdlePosition(const Call& call, const at::Tensor& result);

bool StructurallyEqual(const c10::IValue& a, const c10::IValue& b);
uint64_t HashIValue(uint64_t seed, const c10::IValue& value);
uint64_t HashLayouts(const Call& call);
// The flattened sizes of a call.
void AppendSizes(const Call& call, c10::SmallVectorImpl<int64_t>& out);

}  // namespace outrider::seam
