// SPDX-License-Identifier: MIT
/// All a kernel sees of a cache: one layer of one sequence, as plain data.
#pragma once

#include <kvtilt/core/shape.hpp>
#include <kvtilt/page/layout.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace kvtilt {

namespace cpu {
struct Kernels;
}

enum class PageKind : std::uint8_t {
  Sinks,   ///< the first tokens of a sequence, in 16 bits
  Sealed,  ///< quantized by the layer's recipes, immutable
  Tail,    ///< the newest tokens, in 16 bits
};
inline constexpr int page_kinds = 3;

/// The kinds of pages of a layer, by PageKind.
using LayerLayouts = std::array<PageLayout, page_kinds>;

/// Slots of the sinks' block: whole lines of tokens.
inline int sink_slots(int sink_tokens) {
  return static_cast<int>(round_up(static_cast<std::size_t>(sink_tokens), line_lanes));
}

/// `recipes` as for PageLayout::make.
inline LayerLayouts make_layer_layouts(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                       int page_tokens, int sink_tokens) {
  LayerLayouts layouts;
  layouts[static_cast<int>(PageKind::Sinks)] =
      PageLayout::make_half(shape, sink_slots(sink_tokens));
  layouts[static_cast<int>(PageKind::Sealed)] = PageLayout::make(shape, recipes, page_tokens);
  layouts[static_cast<int>(PageKind::Tail)] = PageLayout::make_half(shape, page_tokens);
  return layouts;
}

/// One page of a sequence.
struct PageEntry {
  std::byte* data = nullptr;
  std::int64_t first_position = 0;  ///< position of slot 0 in its text
  std::int32_t tokens = 0;          ///< slots 0 to tokens-1 hold tokens
  PageKind kind = PageKind::Sealed;
  std::uint32_t* references = nullptr;  ///< how many sequences share a sealed page; the cache's own
};

/// One layer of one sequence. Pages are in order of position. Valid until the sequence is appended to,
/// reserved for, truncated, loses pages or is closed.
struct LayerView {
  LayerShape shape;
  const HeadLayout* heads[page_kinds] = {};  ///< [kv head], by kind of page
  const PageEntry* pages = nullptr;
  std::int32_t page_count = 0;
  std::int32_t max_page_tokens = 0;  ///< slots of the largest page
  std::int32_t sink_tokens = 0;  ///< first positions that are sinks, or will be; of LayerPages 0:
                                 ///< there pages alone say so
  std::int64_t length = 0;       ///< positions 0 to length-1 were appended
  std::int64_t first_kept = 0;   ///< beyond the sinks, positions before it were freed by the window
  const cpu::Kernels* kernels = nullptr;  ///< of the cache's instruction set; null on a device

  [[nodiscard]] const HeadLayout& head(PageKind kind, int kv_head) const {
    return heads[static_cast<int>(kind)][kv_head];
  }

  /// Whether attention over all of it reads a code rather than 16-bit values alone.
  [[nodiscard]] bool touches_codes() const {
    bool quantized = false;
    for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      const HeadLayout& sealed = head(PageKind::Sealed, kv_head);
      quantized = quantized || sealed.key.format.quantized() || sealed.value.format.quantized();
    }
    for (std::int32_t page = 0; page < page_count; ++page)
      if (quantized && pages[page].kind == PageKind::Sealed) return true;
    return false;
  }
};
static_assert(std::is_trivially_copyable_v<LayerView>);

}  // namespace kvtilt
