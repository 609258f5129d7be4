#pragma once
// Names for signature ids. What an id means is known to the room that interned it, so printing asks for names.

#include <functional>
#include <string>
#include <unordered_map>

#include "trace/op_record.h"

namespace outrider::trace {

using NameOf = std::function<std::string(SignatureId)>;
using NameTable = std::unordered_map<SignatureId, std::string>;

// Looks names up in a copy of `table`; ids without a name become "op".
inline NameOf NamesFrom(NameTable table) {
  return [table = std::move(table)](SignatureId id) {
    const auto found = table.find(id);
    return found == table.end() ? std::string("op") : found->second;
  };
}

}  // namespace outrider::trace
