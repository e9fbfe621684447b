// SPDX-License-Identifier: MIT
/// Decodes sealed pages of any recipe, reading their HeadLayout at run time: keys, values and heads
/// may differ in width, granularity and group. One kernel serves all recipes that lack their own.
///
/// A warp takes 16 tokens at a time (tile.hpp). It joins the planes of a fragment's codes to bytes,
/// which decode_value() turns into fp16 in registers. All branches are uniform over the warp.
///
/// Cost, counted in the assembler's listing for sm_90: for 16 tokens of 16 channels about 25
/// instructions a plane and 20 to 25 to decode; for 16 tokens of 128 channels in single planes about
/// 1150, seven times those of a PageTraits kernel.
#pragma once

#include <kvtilt/cuda/attention/fragment_scales.hpp>
#include <kvtilt/cuda/attention/tile.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Decodes 16 tokens of keys or values of any format; a fragment source for attend_tile() and
/// stage_fragments().
///
/// Ahead  tiles loaded together, up to 8
template <Role role, int Dim, int Ahead>
struct PageFragments {
  static constexpr int ahead = Ahead;
  static constexpr int channel_tiles = Dim / tile_extent;

  const TensorLayout* layout;
  const std::byte* block;  ///< the head's part of the page
  int tile;                ///< which 16 tokens of the page

  KVTILT_HD void load(int lane, int first, int end, Words (&words)[ahead]) const {
    if (!layout->format.quantized()) {
      constexpr int tile_bytes = half_tile_bytes(Dim);
      const std::byte* from = block + layout->codes + tile * tile_bytes + lane * 16;
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < ahead; ++i)
        if (first + i < end) words[i] = load_words(from + (first + i) * fragment_tile_bytes);
      return;
    }
    load_codes(lane, first, end, words);
    if (layout->format.granularity == Granularity::PerChannel)
      decode<true>(lane, first, end, words);
    else
      decode<false>(lane, first, end, words);
  }

 private:
  [[nodiscard]] KVTILT_HD int token_tiles() const {
    return tiles_along(role == Role::Keys ? layout->matrix.outer : layout->matrix.inner);
  }

  /// Loads codes and joins their planes to bytes, ordered as in an 8-bit plane (fragment_order.hpp),
  /// in word[0] and word[1] of each tile.
  KVTILT_HD void load_codes(int lane, int first, int end, Words (&words)[ahead]) const {
    const int bits = layout->format.bits;
    const int tokens = token_tiles();
    const int index = role == Role::Keys ? first * tokens + tile : tile * channel_tiles + first;
    const int stride = role == Role::Keys ? tokens : 1;
    const std::byte* plane = block + layout->codes;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < ahead; ++i) words[i].word[0] = words[i].word[1] = 0;
    KVTILT_DEVICE_LOOP
    for (int width = 8; width > 0; width /= 2) {
      if ((bits & width) == 0) continue;
      const int lane_total = tokens * channel_tiles * width / 4;
      // One branch for all loads, so that they are in flight together.
      if (lane_total % 4 == 0) {
        const std::byte* lane_words = plane + lane * 16;
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < ahead; ++i)
          if (first + i < end) {
            const unsigned quarter = static_cast<unsigned>((index + i * stride) * width);
            const std::byte* from =
                lane_words + (quarter / 16 * word_run_bytes + quarter / 4 % 4 * 4);
            words[i].word[2] = load_word(from);
            if (width == 8) words[i].word[3] = load_word(from + 4);
          }
      } else {
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < ahead; ++i)
          if (first + i < end) {
            const std::byte* from =
                plane + lane_word_offset(lane_total, (index + i * stride) * width / 4, lane);
            words[i].word[2] = load_word(from);
            if (width == 8) words[i].word[3] = load_word(from + 4);
          }
      }
      // To the 8-bit order: R1 goes left to bit 8; R2 and R3 are in the next word, or go right to
      // where R0 and R1 lie.
      const int to_odd = width == 8 ? 0 : width == 1 ? 6 : 4;
      const int to_second = width == 4 ? 8 : width;
      const std::uint32_t even = ((1u << width) - 1) * 0x10001u;
      const std::uint32_t odd = even << 8;
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < ahead; ++i)
        if (first + i < end) {
          std::uint32_t(&word)[4] = words[i].word;
          word[2] >>= (index + i * stride) * width * 4 % 16;
          if (width != 8) word[3] = word[2] >> to_second;
          KVTILT_DEVICE_UNROLL
          for (int j = 0; j < 2; ++j)
            word[j] = word[j] << width | (word[2 + j] & even) | ((word[2 + j] << to_odd) & odd);
        }
      plane += lane_total * warp_lanes * 4;
    }
  }

  /// Turns the joined codes into fp16 values.
  template <bool PerChannel>
  KVTILT_HD void decode(int lane, int first, int end, Words (&words)[ahead]) const {
    constexpr bool inner = PerChannel == (role == Role::Keys);
    const int tokens = token_tiles() * tile_extent;
    const int group_tiles = layout->format.group / tile_extent;
    const int band = 4 * (PerChannel ? Dim : tokens);  // bytes of a group's scales and minima
    const std::byte* scales = block + layout->metadata +
                              FragmentScales<role>::lane_offset(lane, inner) +
                              (PerChannel ? tile / group_tiles * band + first * 2 * tile_extent
                                          : tile * 2 * tile_extent + first / group_tiles * band);
    int left = PerChannel ? 0 : first % group_tiles;  // tiles used of the band; below: left
    FragmentScales<role> scale{};
    FragmentScales<role> minimum{};
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < ahead; ++i)
      if (first + i < end) {
        if constexpr (PerChannel) {
          scale = FragmentScales<role>::load(scales + i * 2 * tile_extent, inner);
          minimum = FragmentScales<role>::load(scales + band / 2 + i * 2 * tile_extent, inner);
        } else {
          if (i == 0 || left == 0) {
            scale = FragmentScales<role>::load(scales, inner);
            minimum = FragmentScales<role>::load(scales + band / 2, inner);
            scales += band;
            left = i == 0 ? group_tiles - left : group_tiles;
          }
          --left;
        }
        const std::uint32_t codes[2] = {words[i].word[0], words[i].word[1]};
        KVTILT_DEVICE_UNROLL
        for (int reg = 0; reg < 4; ++reg) {
          // 0x64 above a code's byte is fp16 1024 + code; the fma subtracts 1024.
          const std::uint32_t raised =
              permute_bytes(codes[reg / 2], 0x64646464u, reg % 2 == 0 ? 0x4240u : 0x4341u);
          const std::uint32_t code = fma_halves(raised, 0x3c003c00u, 0xe400e400u);
          words[i].word[reg] = decode_value(code, scale.pair[reg], minimum.pair[reg]);
        }
      }
  }
};

/// Kernel for every recipe at these head dimensions, multiples of 16, in pages of 32, 64 or 128, with
/// keys and values apart.
template <int KeyDim, int ValueDim = KeyDim>
struct GenericTraits {
  static_assert(KeyDim % tile_extent == 0 && ValueDim % tile_extent == 0);
  static constexpr int key_dim = KeyDim;
  static constexpr int value_dim = ValueDim;
  static constexpr bool generic = true;
  static constexpr bool mixed = false;
  // Pages are read from global memory: the stage holds outputs alone.
  static constexpr std::uint32_t stage_bytes = output_bytes(ValueDim);
  using State = AttendState<ValueDim, 0, 1>;

  // Sums and queries of large heads leave registers for fewer loads in flight, or fewer blocks.
  static constexpr int blocks = KeyDim + ValueDim > 384 ? 2 : 3;  ///< on a multiprocessor
  static constexpr int ahead =
      KeyDim + ValueDim > 768 || (blocks == 3 && KeyDim + ValueDim > 256) ? 4 : 8;
  using KeyFragments = PageFragments<Role::Keys, KeyDim, ahead>;
  using ValueFragments = PageFragments<Role::Values, ValueDim, ahead>;

  template <class Threads>
  [[nodiscard]] KVTILT_HD static ValueFragments values(Threads&, const HeadLayout& head,
                                                       const std::byte* block, int tile) {
    return {&head.value, block, tile};
  }

  /// Whether the codes of a resolved recipe fill whole words.
  [[nodiscard]] static constexpr bool supports(const Recipe& recipe, int page_tokens) {
    return recipe.value != in_keys && supports_order({page_tokens, KeyDim}, recipe.key.bits) &&
           supports_order({ValueDim, page_tokens}, recipe.value.bits);
  }
};

/// Prefetches into L2 an equal part of a sealed page for each of its units: here that of `unit`.
template <class Threads>
KVTILT_HD void prefetch_unit(Threads& threads, const LayerView& layer, const HeadLayout& head,
                             const PageSlot* table, int unit, int page_units) {
  prefetch_part(threads, layer.block(PageKind::Sealed, table[unit / page_units].page) + head.offset,
                static_cast<int>(head.value.end()), unit % page_units, page_units);
}

}  // namespace kvtilt::cuda
