#include "seam/op_info.h"

#include <ATen/core/jit_type.h>

#include <array>
#include <cmath>
#include <memory>
#include <string_view>
#include <unordered_map>

namespace outrider::seam {
namespace {

// Operators without a tag that tells what they do. Checked against the schema list of every supported torch minor.
constexpr std::array<std::string_view, 8> kMetadataOnly = {"aten::_has_compatible_shallow_copy_type", "aten::is_same_size",
                                                          "aten::empty_like", "aten::new_empty", "aten::new_empty_strided",
                                                          "aten::is_set_to", "aten::is_pinned", "aten::_has_same_storage_numel"};
constexpr std::array<std::string_view, 5> kChangesMetadata = {"aten::set_", "aten::resize_", "aten::resize_as_", "aten::set_data",
                                                             "aten::_resize_output_"};
constexpr std::array<std::string_view, 7> kReshapes = {"aten::as_strided_", "aten::squeeze_",  "aten::t_",       "aten::transpose_",
                                                       "aten::unsqueeze_",  "aten::swapaxes_", "aten::swapdims_"};
constexpr std::array<std::string_view, 5> kFetch = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal",
                                                   "aten::allclose"};
constexpr std::array<std::string_view, 10> kRandomFill = {
    "aten::bernoulli_.float", "aten::normal_",     "aten::uniform_", "aten::random_",    "aten::random_.from",
    "aten::random_.to",       "aten::exponential_", "aten::cauchy_",  "aten::geometric_", "aten::log_normal_"};

constexpr std::array<std::string_view, 3> kRandomLike = {"aten::rand_like", "aten::randn_like", "aten::randint_like"};

// Output shapes that follow from values, without the tag that says so.
constexpr std::array<std::string_view, 4> kDependsOnValues = {"aten::_pack_padded_sequence", "aten::tensor_split", "aten::segment_reduce",
                                                             "aten::_unique"};
constexpr std::array<std::string_view, 3> kOverwrites = {"aten::fill_", "aten::zero_", "aten::copy_"};
constexpr std::array<std::string_view, 4> kFactoriesWithOut = {"aten::arange", "aten::linspace", "aten::eye", "aten::full"};

// Outputs that share an input's storage although the schema says nothing.
constexpr std::array<std::string_view, 5> kUnannotatedAlias = {"aten::_unsafe_view", "aten::_reshape_alias", "aten::contiguous",
                                                              "aten::reshape", "aten::to"};

template <size_t N>
bool Contains(const std::array<std::string_view, N>& list, std::string_view name) {
  for (auto entry : list) {
    if (entry == name) return true;
  }
  return false;
}

ArgKind KindOf(const c10::TypePtr& real, const c10::TypePtr& type) {
  using c10::TypeKind;
  if (type->kind() == TypeKind::OptionalType) {
    return KindOf(real->castRaw<c10::OptionalType>()->getElementType(), type->castRaw<c10::OptionalType>()->getElementType());
  }
  switch (type->kind()) {
    case TypeKind::TensorType: return ArgKind::kTensor;
    case TypeKind::NumberType:
    case TypeKind::FloatType: return ArgKind::kLateScalar;
    case TypeKind::IntType: return real->kind() == TypeKind::SymIntType ? ArgKind::kSize : ArgKind::kStructural;
    case TypeKind::ListType: {
      auto element = type->castRaw<c10::ListType>()->getElementType();
      auto real_element = real->castRaw<c10::ListType>()->getElementType();
      switch (element->kind()) {
        case TypeKind::TensorType: return ArgKind::kTensorList;
        case TypeKind::OptionalType:
          return element->castRaw<c10::OptionalType>()->getElementType()->kind() == TypeKind::TensorType ? ArgKind::kOptionalTensorList
                                                                                                         : ArgKind::kStructural;
        case TypeKind::NumberType:
        case TypeKind::FloatType: return ArgKind::kLateScalarList;
        case TypeKind::IntType: return real_element->kind() == TypeKind::SymIntType ? ArgKind::kSizeList : ArgKind::kStructural;
        default: return ArgKind::kStructural;
      }
    }
    default: return ArgKind::kStructural;
  }
}

bool SwitchesDrawing(std::string_view argument) { return argument == "dropout_p" || argument == "train" || argument == "training"; }

// Batch norm updates its running statistics although its schema does not say so.
bool HiddenWrite(std::string_view op, std::string_view argument) {
  const bool batch_norm = op == "aten::native_batch_norm" || op == "aten::batch_norm" || op == "aten::cudnn_batch_norm" ||
                          op == "aten::miopen_batch_norm" || op == "aten::_batch_norm_impl_index" || op == "aten::instance_norm";
  return batch_norm && (argument == "running_mean" || argument == "running_var");
}

int ReturnedArgument(const c10::FunctionSchema& schema, const c10::Argument& result) {
  const auto* alias = result.alias_info();
  if (alias == nullptr || !alias->isWrite()) return -1;
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto* candidate = schema.arguments()[i].alias_info();
    if (candidate != nullptr && candidate->isWrite() && candidate->beforeSets() == alias->beforeSets()) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace

OpInfo::OpInfo(const c10::OperatorHandle& op) : handle(op) {
  const auto& schema = op.schema();
  const std::string_view base = schema.name();
  name = schema.overload_name().empty() ? schema.name() : schema.name() + "." + schema.overload_name();
  foreign = base.rfind("aten::", 0) != 0;
  profiler = base.rfind("profiler::", 0) == 0;
  random = op.hasTag(at::Tag::nondeterministic_seeded);
  random_fill = random && Contains(kRandomFill, name);
  random_like = random && Contains(kRandomLike, base);
  fetch = Contains(kFetch, base);
  data_dependent = Contains(kDependsOnValues, base) || op.hasTag(at::Tag::data_dependent_output) || op.hasTag(at::Tag::dynamic_output_shape);
  changes_metadata = op.hasTag(at::Tag::inplace_view) || Contains(kChangesMetadata, base);
  reshapes = Contains(kReshapes, base);
  may_alias = Contains(kUnannotatedAlias, base);
  composite = op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) || base == "aten::unsafe_split" ||
              base == "aten::unsafe_split_with_sizes";
  prepares_input = base == "aten::lift_fresh";
  keeps_for_stream = base == "aten::record_stream";
  metadata_only = Contains(kMetadataOnly, base);
  for (const auto& argument : schema.arguments()) {
    ArgSpec spec;
    spec.kind = KindOf(argument.real_type(), argument.type());
    const auto* alias = argument.alias_info();
    spec.writes = (alias != nullptr && alias->isWrite()) || HiddenWrite(base, argument.name());
    if (random && SwitchesDrawing(argument.name())) draw_switch = static_cast<int>(args.size());
    writes_any |= spec.writes;
    has_out |= argument.is_out();
    args.push_back(spec);
  }
  overwrites = random_fill || Contains(kOverwrites, base) || (writes_any && Contains(kFactoriesWithOut, base));
  bool any_tensor = false, any_number = false;
  for (const auto& result : schema.returns()) {
    returned_arg.push_back(ReturnedArgument(schema, result));
    may_alias |= result.alias_info() != nullptr && !result.alias_info()->isWrite();
    const ArgKind kind = KindOf(result.real_type(), result.type());
    const bool tensor = kind == ArgKind::kTensor || kind == ArgKind::kTensorList;
    const bool number = result.type()->kind() == c10::TypeKind::IntType;
    any_tensor |= tensor;
    any_number |= number;
    odd_returns |= !tensor && !number;
  }
  odd_returns |= any_number && !any_tensor;
  view = may_alias && !writes_any && !composite && !Contains(kUnannotatedAlias, base);
}

bool OpInfo::Draws(const c10::IValue* values) const {
  if (!random || draw_switch < 0 || draws_regardless) return random;
  const c10::IValue& value = values[draw_switch];
  if (value.isBool()) return value.toBool();
  // Exactly +0: an argument that is compared bit for bit between recordings cannot turn into another probability.
  return !value.isDouble() || value.toDouble() != 0 || std::signbit(value.toDouble());
}

OpInfo& InfoOf(const c10::OperatorHandle& op) {
  static auto* table = new std::unordered_map<c10::OperatorHandle, std::unique_ptr<OpInfo>>();
  auto& entry = (*table)[op];
  if (entry == nullptr) entry = std::make_unique<OpInfo>(op);
  return *entry;
}

}  // namespace outrider::seam
