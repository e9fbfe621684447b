// SPDX-License-Identifier: MIT
/// The kinds of pages of a layer, and their layouts.
#pragma once

#include <kvtilt/core/shape.hpp>
#include <kvtilt/page/layout.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt {

enum class PageKind : std::uint8_t {
  Sinks,   ///< the first tokens of a sequence, kept in 16 bits
  Sealed,  ///< full, stored by the layer's recipes, immutable
  Tail,    ///< the newest tokens, in 16 bits
};
inline constexpr int page_kinds = 3;

/// Layouts of a layer's pages, indexed by PageKind.
using LayerLayouts = std::array<PageLayout, page_kinds>;

/// Token slots of the sinks' page: sink_tokens rounded up to 16, the lanes of a line
/// (bit_pack.hpp).
inline int sink_slots(int sink_tokens) {
  return static_cast<int>(round_up(static_cast<std::size_t>(sink_tokens), line_lanes));
}

/// Layouts of all three kinds of pages of a layer. `recipes`: as for PageLayout::make().
inline LayerLayouts make_layer_layouts(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                       int page_tokens, int sink_tokens) {
  LayerLayouts layouts;
  layouts[static_cast<int>(PageKind::Sinks)] =
      PageLayout::make_half(shape, sink_slots(sink_tokens));
  layouts[static_cast<int>(PageKind::Sealed)] = PageLayout::make(shape, recipes, page_tokens);
  layouts[static_cast<int>(PageKind::Tail)] = PageLayout::make_half(shape, page_tokens);
  return layouts;
}

}  // namespace kvtilt
