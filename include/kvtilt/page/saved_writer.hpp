// SPDX-License-Identifier: MIT
/// Writes a saved sequence except for its blocks, which the cache copies in.
#pragma once

#include <kvtilt/core/shape.hpp>
#include <kvtilt/page/saved_sequence.hpp>
#include <kvtilt/page/token_placement.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace kvtilt {

/// Zeroes the slots from `tokens` on of a 16-bit block, which hold no token. Any alignment.
inline void clear_unused_slots(const PageLayout& half, std::int64_t tokens, std::byte* block) {
  const auto clear = [&](std::byte* codes, CodeMatrix matrix, int outer, int inner) {
    std::memset(codes + half_position(matrix, outer, inner) * sizeof(F16), 0, sizeof(F16));
  };
  for (const HeadLayout& head : half.heads)
    for (int slot = static_cast<int>(tokens); slot < half.tokens; ++slot) {
      std::byte* own = block + head.offset;
      for (int channel = 0; channel < head.key.matrix.inner; ++channel)
        clear(own + head.key.codes, head.key.matrix, slot, channel);
      for (int channel = 0; channel < head.value.matrix.outer; ++channel)
        clear(own + head.value.codes, head.value.matrix, channel, slot);
    }
}

/// Use: skip_layer() or add_layer() for each layer in order, then finish(). Without an image nothing
/// is written, and bytes() is the size that one must have.
class SavedWriter {
 public:
  /// image  empty, or bytes() bytes of any alignment
  SavedWriter(std::span<std::byte> image, int layers, std::int64_t length,
              const TokenPlacement& placement, std::uint64_t fingerprint)
      : image_(image) {
    header_.layers = layers;
    header_.fingerprint = fingerprint;
    header_.length = length;
    header_.page_tokens = placement.page_tokens;
    header_.sink_tokens = placement.sink_tokens;
    header_.recent_tokens = placement.recent_tokens;
    header_.bytes = sizeof(SavedHeader) + static_cast<std::uint64_t>(layers) * sizeof(SavedLayer);
  }

  /// Adds a layer that keeps no cache.
  void skip_layer() {
    SavedLayer layer;
    layer.offset = header_.bytes;
    write_layer(layer);
  }

  /// Adds a layer that keeps one. The caller writes its blocks to the returned places, with unused
  /// slots as zeros.
  ///
  /// layer  with `pages`, `tail_start` and `first_kept`; the rest is filled in here
  /// page   page(i): the i-th SavedPage
  template <class Page>
  SavedPlaces add_layer(const LayerShape& shape, const LayerLayouts& layouts, SavedLayer layer,
                        Page page) {
    layer.kv_heads = shape.kv_heads;
    layer.key_dim = shape.key_dim;
    layer.value_dim = shape.value_dim;
    layer.window = shape.window;
    layer.keep_sinks = shape.keep_sinks ? 1 : 0;
    layer.values_in_keys = shape.values_in_keys ? 1 : 0;
    layer.offset = header_.bytes;
    write_layer(layer);
    const SavedPlaces places(header_, layer, layouts);
    if (!image_.empty()) {
      std::memset(image_.data() + layer.offset, 0, places.first_block() - layer.offset);
      std::uint64_t at = places.recipes;
      for (const HeadLayout& head : layouts[static_cast<std::size_t>(PageKind::Sealed)].heads)
        at = write(at, saved_recipe(head));
      for (std::int32_t i = 0; i < layer.pages; ++i) at = write(at, page(i));
      tables_ += saved_sum(image_, layer.offset, places.first_block());
    }
    header_.bytes = places.end;
    return places;
  }

  [[nodiscard]] std::size_t bytes() const { return header_.bytes; }

  /// Writes the header.
  ///
  /// blocks  saved_sum() of all blocks
  void finish(std::uint64_t blocks) {
    write(0, header_);
    const std::uint64_t layers = static_cast<std::uint64_t>(header_.layers) * sizeof(SavedLayer);
    header_.checksum = saved_checksum(image_.first(sizeof header_ + layers)) + tables_ + blocks;
    write(0, header_);
  }

 private:
  void write_layer(const SavedLayer& layer) {
    if (!image_.empty())
      write(sizeof(SavedHeader) + static_cast<std::uint64_t>(next_++) * sizeof layer, layer);
  }
  template <class T>
  std::uint64_t write(std::uint64_t at, const T& record) {
    std::memcpy(image_.data() + at, &record, sizeof record);
    return at + sizeof record;
  }

  std::span<std::byte> image_;
  SavedHeader header_;
  std::uint64_t tables_ = 0;  ///< saved_sum() of recipes and page tables
  int next_ = 0;              ///< index of the next layer
};

}  // namespace kvtilt
