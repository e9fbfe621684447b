// SPDX-License-Identifier: MIT
/// Serves layers whose kv heads have different recipes, as plans by head give them: one kernel holds
/// the code of several PageTraits, and a block runs that of the head it works on.
#pragma once

#include <kvtilt/cuda/attention/page.hpp>
#include <kvtilt/page/layout.hpp>

#include <algorithm>
#include <cstdint>
#include <tuple>

namespace kvtilt::cuda {

/// Pages  PageTraits of equal head dimensions and tokens per page
template <class... Pages>
struct MixedTraits {
  using First = std::tuple_element_t<0, std::tuple<Pages...>>;
  static constexpr int key_dim = First::key_dim;
  static constexpr int value_dim = First::value_dim;
  static constexpr int page_tokens = First::page_tokens;
  static_assert(((Pages::key_dim == key_dim && Pages::value_dim == value_dim &&
                  Pages::page_tokens == page_tokens && Pages::page_units == 1) &&
                 ...));

  static constexpr bool generic = false;
  static constexpr bool mixed = true;
  static constexpr bool sums_apart = (Pages::sums_apart || ...);
  static constexpr int page_units = 1;
  static constexpr std::uint32_t unit_bytes = std::max({Pages::unit_bytes...});
  static constexpr std::uint32_t stage_bytes = std::max({Pages::stage_bytes...});

  /// Index in `Pages` of the traits that describe a head's pages; one does (checks.hpp: fits()).
  KVTILT_HD static int kind_of(const HeadLayout& head) {
    int kind = 0;
    int found = 0;
    ((found = Pages::describes(head.key.format, head.value.format) ? kind : found, ++kind), ...);
    return found;
  }
  /// Calls `use` with the traits of index `kind`.
  template <class Use>
  KVTILT_HD static void with(int kind, const Use& use) {
    int i = 0;
    ((i++ == kind ? use(Pages{}) : void()), ...);
  }
  KVTILT_HD static std::uint32_t bytes_of(int kind) {
    std::uint32_t bytes = 0;
    with(kind, [&](auto pages) { bytes = decltype(pages)::unit_bytes; });
    return bytes;
  }
};

}  // namespace kvtilt::cuda
