#pragma once
// Strong integer ids: two ids with different tags do not mix, and a default-made id is invalid.

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>

namespace outrider::base {

template <class Tag, class Rep = uint32_t>
struct Id {
  static constexpr Rep kInvalid = std::numeric_limits<Rep>::max();

  Rep value = kInvalid;

  constexpr Id() = default;
  explicit constexpr Id(Rep v) : value(v) {}

  constexpr bool IsValid() const { return value != kInvalid; }

  friend constexpr bool operator==(Id, Id) = default;
  friend constexpr auto operator<=>(Id, Id) = default;
};

}  // namespace outrider::base

template <class Tag, class Rep>
struct std::hash<outrider::base::Id<Tag, Rep>> {
  size_t operator()(outrider::base::Id<Tag, Rep> id) const noexcept { return std::hash<Rep>{}(id.value); }
};
