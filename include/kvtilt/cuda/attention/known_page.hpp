// SPDX-License-Identifier: MIT
/// Decodes sealed pages of one PageTraits to fp16, 16 tokens at a time: generic_page.hpp with
/// addresses, shifts and masks known to the compiler. About 20 instructions for a fragment of one
/// plane, 8 to 12 more for each other plane.
#pragma once

#include <kvtilt/cuda/attention/fragment_scales.hpp>
#include <kvtilt/cuda/attention/page.hpp>
#include <kvtilt/cuda/attention/tile.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Extracts a fragment's codes as fp16 numbers, two per register.
///
/// word  for each plane the word that holds the fragment; of 8 bits word[1] holds R2 and R3
/// tile  the fragment's place in that word
template <int Bits>
KVTILT_HD void decode_codes(const std::uint32_t (&word)[4], int tile, std::uint32_t (&codes)[4]) {
  constexpr Planes split = planes(Bits);
  constexpr std::uint32_t raised = 0x64006400u;  // 1024 + 2^shift code, then the code: both exact
  KVTILT_DEVICE_UNROLL
  for (int reg = 0; reg < 4; ++reg) {
    const int shift = reg % 2 * outer_shift(Bits) + reg / 2 * inner_shift(Bits);
    codes[reg] = raised;
    if constexpr (Bits == 8) {
      codes[reg] = permute_bytes(word[reg / 2], raised, reg % 2 == 0 ? 0x7250u : 0x7351u);
    } else {
      int to = Bits + shift;
      KVTILT_DEVICE_UNROLL
      for (int plane = 0; plane < split.count; ++plane) {
        const int width = split.width[plane];
        to -= width;
        codes[reg] = mask_and_set(moved(word[plane], to - lane_field(width, tile, reg).shift),
                                  (((1u << width) - 1) * 0x10001u) << to, codes[reg]);
      }
    }
    codes[reg] = fma_halves(codes[reg], half_power(-shift) * 0x10001u,
                            (half_power(10 - shift) | 0x8000u) * 0x10001u);
  }
}

/// Byte offset of a lane's word `word` in a plane whose words all lie in runs of four.
KVTILT_HD constexpr int run_offset(int word) { return word / 4 * word_run_bytes + word % 4 * 4; }

/// Decodes keys or values of 16 tokens; a fragment source for stage_fragments().
template <Role role, class Pages>
class KnownFragments {
  static constexpr bool keys = role == Role::Keys;
  static constexpr int bits = keys ? Pages::key_bits : Pages::value_bits;
  static constexpr int dim = keys ? Pages::key_dim : Pages::value_dim;
  static constexpr int token_tiles = Pages::page_tokens / tile_extent;
  static constexpr int channel_tiles = dim / tile_extent;
  static constexpr int group_tiles = (keys ? Pages::key_group : Pages::value_group) / tile_extent;
  static constexpr bool per_channel = keys ? !Pages::token_keys : Pages::channel_values;
  static constexpr bool inner = per_channel == keys;  ///< scales run along the inner axis
  static constexpr int band = 4 * (per_channel ? dim : Pages::page_tokens);  ///< bytes of a group's
                                                                             ///< scales and minima
  static constexpr int least_width = bits & -bits;

 public:
  /// Tiles loaded together; of values at most as many as fill 16 bytes of a lane.
  static constexpr int ahead = tiles_ahead(channel_tiles, keys || bits < 4 ? 8 : bits < 8 ? 4 : 2);

  /// What load() relies on: all token tiles of 16 key channels, or `ahead` tiles of values, fill whole
  /// words of each plane; all words lie in runs of four; `ahead` tiles are whole bands or lie in one.
  static constexpr bool supported =
      token_tiles * channel_tiles * least_width % 16 == 0 &&
      (keys ? token_tiles * least_width % 4 == 0
            : channel_tiles % ahead == 0 && ahead * least_width % 4 == 0) &&
      (per_channel || group_tiles % ahead == 0 || ahead % group_tiles == 0);

  /// tile  which 16 tokens of the page
  KVTILT_HD KnownFragments(const std::byte* block, int tile, int lane)
      : codes_(block + (keys ? Pages::key_codes : Pages::value_codes) + lane * 16),
        metadata_(block + (keys ? Pages::key_metadata : Pages::value_metadata) +
                  FragmentScales<role>::lane_offset(lane, inner) +
                  (per_channel ? tile / group_tiles * band : tile * 2 * tile_extent)),
        tile_(tile) {}

  /// `first` is a multiple of `ahead`.
  KVTILT_HD void load(int, int first, int end, Words (&words)[ahead]) const {
    constexpr int own = per_channel ? ahead : 1;  // scales of each channel tile, or of one band
    FragmentScales<role> scale[own];
    FragmentScales<role> minimum[own];
    const auto load_scales = [&](int i, const std::byte* from) {
      scale[i] = FragmentScales<role>::load(from, inner);
      minimum[i] = FragmentScales<role>::load(from + band / 2, inner);
    };
    load_codes(first, end, words);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < ahead && per_channel; ++i)
      if (first + i < end) load_scales(i % own, metadata_ + (first + i) * 2 * tile_extent);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < ahead; ++i)
      if (first + i < end) {
        if (!per_channel && i % group_tiles == 0)
          load_scales(0, metadata_ + (first + i) / group_tiles * band);
        std::uint32_t code[4];
        decode_codes<bits>(words[i].word, keys ? 0 : i, code);
        KVTILT_DEVICE_UNROLL
        for (int reg = 0; reg < 4; ++reg)
          words[i].word[reg] =
              decode_value(code[reg], scale[i % own].pair[reg], minimum[i % own].pair[reg]);
      }
  }

 private:
  /// Loads the words of each plane. Shifts those of keys until the tile is in the lowest bits: its
  /// place in a word depends on `tile_`, which the compiler does not know.
  KVTILT_HD void load_codes(int first, int end, Words (&words)[ahead]) const {
    constexpr Planes split = planes(bits);
    const std::byte* codes = codes_;
    KVTILT_DEVICE_UNROLL
    for (int plane = 0; plane < split.count; ++plane) {
      const int width = split.width[plane];
      if constexpr (keys) {
        const int step_words = token_tiles * width / 4;
        const std::byte* from =
            codes + run_offset(tile_ * width / 4) + first * step_words / 4 * word_run_bytes;
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < ahead; ++i)
          if (first + i < end) {
            words[i].word[plane] = load_word(from + run_offset(i * step_words));
            if (width == 8) words[i].word[1] = load_word(from + run_offset(i * step_words) + 4);
            if (width < 4) words[i].word[plane] >>= tile_ * width * 4 % 16;
          }
      } else {
        const int word = tile_ * (channel_tiles * width / 4) + first * width / 4;
        Words packed;
        const int count = ahead * width / 4;
        if (count == 4) packed = load_words(codes + run_offset(word));
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < count && count < 4; ++i)
          packed.word[i] = load_word(codes + run_offset(word) + i * 4);
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < ahead; ++i) {
          words[i].word[plane] = packed.word[i * width / 4 % 4];
          if (width == 8) words[i].word[1] = packed.word[(i * 2 + 1) % 4];
        }
      }
      codes += token_tiles * channel_tiles * width * warp_lanes;
    }
  }

  const std::byte* codes_;     ///< the lane's
  const std::byte* metadata_;  ///< scales of the lane's channels or tokens
  int tile_;
};

}  // namespace kvtilt::cuda
