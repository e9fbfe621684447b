// SPDX-License-Identifier: MIT
/// File format of a saved sequence: save() of a cache writes it, the same on every machine, and
/// load() of a cache of the same shape, plan, page options and fingerprint reads it. Version 1;
/// readers refuse others.
///
///     header           64 bytes  SavedHeader
///     [layers]         64 bytes  SavedLayer
///     for each layer that keeps a cache, from its `offset` on, a multiple of 64:
///       [kv_heads]     16 bytes  SavedRecipe
///       [pages]        16 bytes  SavedPage, in order of position
///                                zeros up to a multiple of 64
///       a block of sinks         \  as in page/layout.hpp. The sinks have sink_tokens slots,
///       [pages] sealed pages      > rounded up to 16, the others page_tokens. Sinks and tail are
///       [tail blocks]            /  in 16 bits; their slots without a token are zeros
///
/// Everything is little endian, reserved bytes are zeros, and there are no other gaps. A tail of n
/// tokens has n / page_tokens blocks, rounded up. Sequences of equal content have equal bytes,
/// except for pages that a truncation cut short: they are saved whole, with the tokens that were
/// cut off. All offsets follow from header and tables: pages can be read in place, or sent layer by
/// layer.
#pragma once

#include <kvtilt/core/config.hpp>
#include <kvtilt/page/layer_layouts.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/format.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace kvtilt {

struct SavedHeader {
  static constexpr std::uint64_t magic_number = 0x7173746c6974766bu;  // "kvtiltsq"
  static constexpr std::uint32_t newest = 1;

  std::uint64_t magic = magic_number;
  std::uint32_t version = newest;
  std::int32_t layers = 0;
  std::uint64_t bytes = 0;     ///< of the whole saved sequence, header included
  std::uint64_t checksum = 0;  ///< saved_checksum()
  std::int64_t length = 0;     ///< tokens in every layer
  std::int32_t page_tokens = 0;
  std::int32_t sink_tokens = 0;
  std::int32_t recent_tokens = 0;
  std::int32_t reserved = 0;
  std::uint64_t fingerprint = 0;  ///< CacheOptions::fingerprint
};
static_assert(sizeof(SavedHeader) == 64);

struct SavedLayer {
  std::int32_t kv_heads = 0;  ///< 0: no cache; every other member but `offset` is zero
  std::int32_t key_dim = 0;
  std::int32_t value_dim = 0;
  std::int32_t window = 0;
  std::int32_t keep_sinks = 0;
  std::int32_t pages = 0;
  std::int64_t tail_start = 0;  ///< position of the tail's first token; sinks lie before it
  std::int64_t first_kept = 0;  ///< beyond the sinks, the window has freed positions before it
  std::uint64_t offset = 0;     ///< from the start of the header
  std::int32_t values_in_keys = 0;
  std::int32_t reserved[3] = {};
};
static_assert(sizeof(SavedLayer) == 64);

struct SavedFormat {
  std::uint8_t bits;
  std::uint8_t granularity;  ///< 0: per channel, 1: per token
  std::uint8_t rule;         ///< 0: MinMax, 1: MinMse, 2: Centroids
  std::uint8_t reserved;
  std::int32_t group;  ///< resolved, never a default; 0 in 16 bits

  friend constexpr bool operator==(const SavedFormat&, const SavedFormat&) = default;
};
struct SavedRecipe {
  SavedFormat key;
  SavedFormat value;  ///< zeros if values are in the keys

  friend constexpr bool operator==(const SavedRecipe&, const SavedRecipe&) = default;
};
static_assert(sizeof(SavedRecipe) == 16);

struct SavedPage {
  std::int64_t first_position = 0;
  std::int32_t tokens = 0;  ///< slots 0 to tokens - 1 hold tokens
  std::int32_t reserved = 0;
};
static_assert(sizeof(SavedPage) == 16);

/// Contribution of the `index`-th 64-bit word of a saved sequence to its checksum:
/// (low + 2^32) (high + 3 x 2^32) modulo 2^64, each half of the word first mixed with the index.
/// Damage to one half of one word always changes the sum, other damage all but always.
/// Contributions may be added in any order.
KVTILT_HD constexpr std::uint64_t saved_word_sum(std::uint64_t word, std::uint64_t index) {
  const std::uint32_t place = static_cast<std::uint32_t>(index);
  const std::uint32_t low = static_cast<std::uint32_t>(word) + place * 0x9e3779b1u;
  const std::uint32_t high = static_cast<std::uint32_t>(word >> 32) + place * 0x85ebca77u;
  return std::uint64_t{low} * high + (std::uint64_t{3 * low + high} << 32);
}

/// The contribution of bytes `from` to to - 1, both multiples of 8, of a saved sequence of any
/// alignment. Cost: about 1 ns a word.
inline std::uint64_t saved_sum(std::span<const std::byte> image, std::uint64_t from,
                               std::uint64_t to) {
  std::uint64_t sum = 0;
  for (std::uint64_t i = from / sizeof sum; i < to / sizeof sum; ++i) {
    std::uint64_t word;
    std::memcpy(&word, image.data() + i * sizeof word, sizeof word);
    sum += saved_word_sum(word, i);
  }
  return sum;
}

/// The checksum: the sum over all words but its own. It detects damage, not forgery.
///
/// image  a multiple of 8 bytes, any alignment; at least a header
inline std::uint64_t saved_checksum(std::span<const std::byte> image) {
  constexpr std::uint64_t own = offsetof(SavedHeader, checksum);
  return saved_sum(image, 0, own) + saved_sum(image, own + sizeof own, image.size());
}

static_assert(static_cast<int>(Granularity::PerChannel) == 0 &&
              static_cast<int>(Granularity::PerToken) == 1);
static_assert(static_cast<int>(RangeRule::MinMax) == 0 &&
              static_cast<int>(RangeRule::MinMse) == 1 &&
              static_cast<int>(RangeRule::Centroids) == 2);

/// How one kv head of a sealed page is stored.
constexpr SavedRecipe saved_recipe(const HeadLayout& sealed) {
  const auto format = [](const Format& from) {
    return SavedFormat{static_cast<std::uint8_t>(from.bits),
                       static_cast<std::uint8_t>(from.granularity),
                       static_cast<std::uint8_t>(from.rule), 0, from.group};
  };
  return {format(sealed.key.format),
          sealed.values_in_keys() ? SavedFormat{} : format(sealed.value.format)};
}

/// Where the parts of a layer lie, in bytes from the start of the header. Indexed by PageKind.
struct SavedPlaces {
  std::uint64_t recipes = 0;
  std::uint64_t pages = 0;  ///< table of SavedPage
  std::uint64_t blocks[page_kinds] = {};
  std::uint64_t block_bytes[page_kinds] = {};
  std::int64_t counts[page_kinds] = {};
  std::uint64_t end = 0;

  /// layer    keeps a cache; its offset is set
  /// layouts  of its pages
  SavedPlaces(const SavedHeader& header, const SavedLayer& layer, const LayerLayouts& layouts)
      : recipes(layer.offset),
        pages(recipes + static_cast<std::uint64_t>(layer.kv_heads) * sizeof(SavedRecipe)) {
    const std::int64_t tail = std::max<std::int64_t>(0, header.length - layer.tail_start);
    counts[static_cast<int>(PageKind::Sinks)] = 1;
    counts[static_cast<int>(PageKind::Sealed)] = layer.pages;
    counts[static_cast<int>(PageKind::Tail)] = (tail + header.page_tokens - 1) / header.page_tokens;
    end = round_up(pages + static_cast<std::uint64_t>(layer.pages) * sizeof(SavedPage),
                   page_alignment);
    for (int kind = 0; kind < page_kinds; ++kind) {
      blocks[kind] = end;
      block_bytes[kind] = layouts[static_cast<std::size_t>(kind)].bytes;
      end += static_cast<std::uint64_t>(counts[kind]) * block_bytes[kind];
    }
  }

  [[nodiscard]] KVTILT_HD std::uint64_t block(PageKind kind, std::int64_t index) const {
    return blocks[static_cast<int>(kind)] +
           static_cast<std::uint64_t>(index) * block_bytes[static_cast<int>(kind)];
  }
  [[nodiscard]] KVTILT_HD std::int64_t count(PageKind kind) const {
    return counts[static_cast<int>(kind)];
  }
  /// Where the layer's tables end and its blocks begin.
  [[nodiscard]] std::uint64_t first_block() const { return blocks[0]; }
};

}  // namespace kvtilt
