// SPDX-License-Identifier: MIT
/// What a kernel gets of a cache: one layer of one sequence, as plain data.
#pragma once

#include <kvtilt/core/shape.hpp>
#include <kvtilt/page/layer_layouts.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace kvtilt {

namespace cpu {
struct Kernels;
}

/// One page of a sequence.
struct PageEntry {
  std::byte* data = nullptr;
  std::int64_t first_position = 0;  ///< position of slot 0 in its sequence
  std::int32_t tokens = 0;          ///< slots 0 to tokens-1 hold tokens
  PageKind kind = PageKind::Sealed;
  std::uint32_t* references = nullptr;  ///< sequences that share a sealed page; only for the cache
};

/// One layer of one sequence. Pages are in order of position. Valid until tokens are appended to
/// the sequence or reserved, or until it is truncated, loses pages or is closed.
struct LayerView {
  LayerShape shape;
  const HeadLayout* heads[page_kinds] = {};  ///< [kv head], by kind of page
  const PageEntry* pages = nullptr;
  std::int32_t page_count = 0;
  std::int32_t max_page_tokens = 0;  ///< slots of the largest page
  std::int32_t sink_tokens = 0;  ///< number of first positions reserved for sinks; 0 in views of
                                 ///< LayerPages, where only PageEntry::kind marks sinks
  std::int64_t length = 0;       ///< positions 0 to length-1 were appended
  std::int64_t first_kept = 0;   ///< beyond the sinks, the window has freed positions before it
  const cpu::Kernels* kernels = nullptr;  ///< of the cache's instruction set

  [[nodiscard]] const HeadLayout& head(PageKind kind, int kv_head) const {
    return heads[static_cast<int>(kind)][kv_head];
  }

  /// Whether attention over all positions reads quantized codes, not 16-bit values alone.
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
