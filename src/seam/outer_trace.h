#pragma once
// One step as the outer lane records it: host events, the device ops each event ran, and the tensors that connect them.
//
// Two identities: a *value* is a tensor object (TensorImpl) that an event returned; a *slot* is a storage; a *variable* is
// a slot with a geometry. Host events speak of values and externals, device ops of variables; they meet in the slot.

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "seam/env.h"
#include "seam/geometry.h"
#include "seam/op_info.h"
#include "seam/signature.h"

namespace outrider::seam {

struct Arg {
  enum class Code : uint8_t {
    kNone,       // None
    kUndefined,  // a Tensor argument that holds nothing
    kValue,      // id: value
    kExternal,   // id: external
    kVariable,   // id: variable (device ops only)
    kList,       // of tensors; `optional_list` for Tensor?[]
    kConstant,   // must be equal
    kLate,       // id: late-bound scalar
    kNumber,     // a 0-dim CPU tensor, compared by value
  };
  Code code = Code::kNone;
  bool optional_list = false;
  int id = -1;
  std::vector<Arg> list;
  c10::IValue constant;
};

// A tensor among the arguments of an event.
struct Place {
  int arg = -1, element = -1;  // element: of a list, -1 for an argument that is a tensor
  friend bool operator==(const Place&, const Place&) = default;
};
at::Tensor TensorAt(const Stack& args, Place place);

// What autograd knows of a view: of which tensor, and how it was made.
struct ViewOf {
  bool any = false;
  Place source;  // the argument of its event that it shares its base with, or that is its base; none: the base is ...
  Geometry hidden_base;  // ... a tensor inside the operator, which nobody else has seen
  bool hidden_requires_grad = false;
  int creation = 0;  // torch::autograd::CreationMeta
  bool OfHidden() const { return any && source.arg < 0; }
  friend bool operator==(const ViewOf&, const ViewOf&) = default;
};

struct OuterValue {
  Geometry geometry;
  c10::DispatchKeySet keys;
  bool requires_grad = false;
  bool is_leaf = true;
  int slot = -1;
  int root = -1;         // index among the step's backward roots, -1 if none
  int consumed_by = -1;  // the backward event that visited its node
  ViewOf view;
  Place counter;         // the argument of its event that it shares the version counter with (views, detach); none:
  uint32_t version = 0;  // ... where its own counter begins
};

// A leaf that requires grad (a view of a parameter, made without gradients) has no history.
inline bool NeedsHistory(const OuterValue& value) { return value.requires_grad && !value.is_leaf; }

struct OuterOutput {
  enum class Kind : uint8_t { kValue, kArgument, kList, kUndefined };
  Kind kind = Kind::kValue;
  int value = -1;
  int arg = -1, element = -1;  // kArgument: the very object at this place
  std::vector<int> values;     // kList
};

struct VersionBump {
  Place place;  // one of the arguments that share the counter
  uint32_t count = 0;
};

struct Snapshot {
  int slot = -1;
  int external = -1;
};

struct OuterEvent {
  bool backward = false;
  OpInfo* info = nullptr;  // null for a backward
  std::vector<Arg> args;   // backward: roots, then root gradients
  std::vector<OuterOutput> outputs;
  Env env;
  std::vector<VersionBump> bumps;
  std::vector<Snapshot> snapshots;  // foreign memory read by this event: copied when the event is validated
  std::vector<int> leaves;          // backward: externals that get a gradient ...
  std::vector<Arg> leaf_grads;      // ... their .grad before: undefined, a value or an external
  std::vector<int> leaf_values;     // ... the value that becomes .grad, -1 where the old object was added to
  std::vector<uint32_t> leaf_bumps; // ... version bumps of an object that was added to
  int first_op = 0, end_op = 0;     // its device ops
  bool host_draw = false;           // some device op draws from the CPU generator
};

struct DeviceOp {
  OpInfo* info = nullptr;
  std::vector<Arg> args;
  std::vector<Arg> outputs;
  int event = -1;
  Env env;                      // what its kernel may look at
  bool host_draw = false;       // CPU random numbers: drawn by the imperative thread
  int draw_slot = -1;           // ... into this slot
  std::vector<int> writes;      // slots written
  std::vector<int> drop_slots;  // slots whose last use this is (plan)
};

struct Variable {
  int slot = -1;
  Geometry geometry;
};

struct Slot {
  bool external = false;   // bytes exist before the step
  int persistent = -1;     // index into OuterPlan::persistent_records (plan)
  int feed = -1;           // external that brings it (plan)
  bool snapshot = false;
  int snapshot_external = -1;  // ... of this external
  bool allocate = false;   // a bare allocation inside an event, first seen when it is filled
  size_t nbytes = 0;
  c10::Device device = c10::kCPU;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage{c10::intrusive_ptr<c10::StorageImpl>()};
  c10::StorageImpl* identity = nullptr;
};

struct External {
  c10::weak_intrusive_ptr<c10::TensorImpl> tensor{c10::intrusive_ptr<c10::TensorImpl>()};
  c10::TensorImpl* identity = nullptr;
  c10::StorageImpl* storage = nullptr;
  // Keeps the address of the storage from being used again while it is compared with.
  c10::weak_intrusive_ptr<c10::StorageImpl> storage_guard{c10::intrusive_ptr<c10::StorageImpl>()};
  Geometry geometry;  // snapshot externals: offset 0
  size_t storage_nbytes = 0;
  int64_t offset = 0;
  bool requires_grad = false;
  bool snapshot = false;
  bool persistent = false;  // plan
  int slot = -1;
};

struct OuterTrace {
  std::vector<OuterEvent> events;
  std::vector<DeviceOp> ops;
  std::vector<OuterValue> values;
  std::vector<Variable> variables;
  std::vector<Slot> slots;
  std::vector<External> externals;
  std::vector<char> alive;         // per value: somebody held it at a fetch or at the end
  std::vector<int> fetch_events;   // a value was read before this event
  int roots = 0;
  std::string refusal;             // reason code and text; empty: eligible
};

// Two views of one tensor: a write to either shows in the version of both.
bool ShareCounter(const c10::TensorImpl& a, const c10::TensorImpl& b);

// "INNER_..." text of the first problem wins.
void Refuse(OuterTrace& trace, const std::string& reason);

bool SameArg(const Arg& a, const Arg& b);
// A private copy of a 0-dim CPU tensor, a wrapped number if the original is one.
at::Tensor CopyNumber(const at::Tensor& tensor);
// Bitwise comparison of two 0-dim CPU tensors.
bool SameNumber(const at::Tensor& a, const at::Tensor& b);
// A 0-dim CPU tensor that programs use as a number.
bool IsHostNumber(const c10::TensorImpl& tensor, c10::Device compute_device);

}  // namespace outrider::seam
