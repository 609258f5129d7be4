#pragma once
// What a schema tells about an operator, read once per operator and kept for the life of the process.

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <string>

namespace outrider::seam {

enum class ArgKind : uint8_t {
  kTensor,              // Tensor, Tensor?
  kTensorList,          // Tensor[]
  kOptionalTensorList,  // Tensor?[]
  kLateScalar,          // Scalar, float: passed by value, never part of equality
  kLateScalarList,      // Scalar[], float[]
  kSize,                // SymInt: part of the shape class
  kSizeList,            // SymInt[]
  kStructural,          // part of equality
};

struct ArgSpec {
  ArgKind kind = ArgKind::kStructural;
  bool writes = false;
};

struct OpInfo {
  explicit OpInfo(const c10::OperatorHandle& op);

  c10::OperatorHandle handle;
  std::string name;  // "aten::add_.Tensor"
  c10::SmallVector<ArgSpec, 8> args;
  // Per return: index of the written argument it hands back, or -1 for a value of its own.
  c10::SmallVector<int, 3> returned_arg;
  bool foreign = false;          // not an aten operator
  bool profiler = false;         // profiler bookkeeping: never seen
  bool random = false;           // draws from a generator
  bool random_fill = false;      // ... and only overwrites its first argument
  bool random_like = false;      // ... and reads only the geometry of its first argument
  int draw_switch = -1;          // ... unless this argument says otherwise: dropout_p, train, training
  bool draws_regardless = false; // a recorded run drew although the argument said otherwise
  bool data_dependent = false;   // output shape or host value depends on data
  bool fetch = false;            // hands a value to the host
  bool changes_metadata = false; // sizes, strides or storage of an argument change in place
  bool metadata_only = false;    // never reads the data of its inputs
  bool reshapes = false;         // changes_metadata, but only sizes and strides: neither bytes nor storage matter
  bool writes_any = false;
  bool has_out = false;         // writes `out` arguments, which it resizes where they have other sizes than its results
  bool composite = false;       // made of other operators, which the lane sees one by one
  bool overwrites = false;      // fills its written argument without reading it
  bool prepares_input = false;  // hands a fresh tensor on unchanged
  bool may_alias = false;        // an output may share the storage of an input
  bool view = false;             // ... and always does
  bool odd_returns = false;      // returns something other than tensors, beside which integers that follow from shapes may stand
  bool keeps_for_stream = false; // aten::record_stream
  // Set when a recorded run produced what placeholders cannot stand for (sparse, other device, ...).
  bool pinned_inline = false;

  // The operator has to run on the host thread, on real values.
  bool MustRunInline() const {
    return foreign || data_dependent || fetch || changes_metadata || metadata_only || odd_returns || pinned_inline;
  }
  // A call with these arguments draws from a generator. Attention without dropout and dropout in evaluation do not,
  // although their operators are random.
  bool Draws(const c10::IValue* values) const;
};

// Imperative thread only. The reference stays valid for ever.
OpInfo& InfoOf(const c10::OperatorHandle& op);

}  // namespace outrider::seam
