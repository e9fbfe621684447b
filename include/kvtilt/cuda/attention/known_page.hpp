// SPDX-License-Identifier: MIT
/// Sealed pages of one PageTraits, in single planes, as fp16, 16 tokens at a time: what generic_page.hpp does for any
/// recipe, with addresses, shifts and masks known to the compiler. About 20 instructions a fragment.
#pragma once

#include <kvtilt/cuda/attention/page.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Registers of a fragment as whole codes in fp16, from the word of the tile, at bit 0; of 8 bits the
/// second word holds R2 and R3.
template <int Width>
KVTILT_HD void decode_codes(std::uint32_t first, std::uint32_t second, std::uint32_t (&codes)[4]) {
  KVTILT_DEVICE_UNROLL
  for (int reg = 0; reg < 4; ++reg) {
    // 1024 + 2^shift code, then the code: both exact.
    constexpr std::uint32_t raised = 0x64006400u;
    constexpr std::uint32_t low = ((1u << Width) - 1) * 0x10001u;
    int shift = reg % 2 * outer_shift(Width) + reg / 2 * inner_shift(Width);
    if constexpr (Width == 8) {
      codes[reg] =
          permute_bytes(reg < 2 ? first : second, raised, reg % 2 == 0 ? 0x7250u : 0x7351u);
    } else if constexpr (Width == 4) {
      codes[reg] = mask_and_set(reg < 2 ? first : first >> 8, low << shift, raised);
    } else {
      codes[reg] = mask_and_set(first, low << shift, raised);
    }
    codes[reg] = fma_halves(codes[reg], half_power(-shift) * 0x10001u,
                            (half_power(10 - shift) | 0x8000u) * 0x10001u);
  }
}

/// Word `word` of a lane in a plane whose words are all in runs of four.
KVTILT_HD constexpr int run_offset(int word) { return word / 4 * 512 + word % 4 * 4; }

/// Keys of 16 tokens, per channel; source of stage_fragments().
template <class Pages>
struct KnownKeys {
  static constexpr int ahead = 4;
  static constexpr int width = Pages::key_bits;
  static constexpr int tiles = Pages::page_tokens / tile_extent;
  static constexpr int quarters = tiles * width;        ///< of a word, from step to step
  /// A step's tiles fill whole words of one plane.
  static constexpr bool supported =
      !Pages::token_keys && planes(width).count == 1 && quarters % 4 == 0;

  const std::byte* codes;     ///< the lane's of step 0
  const std::byte* metadata;  ///< scales of the lane's channels in step 0
  int shift;

  KVTILT_HD KnownKeys(const std::byte* block, int tile, int lane)
      : codes(block + Pages::key_codes + lane * 16 + run_offset(tile * width / 4)),
        metadata(block + Pages::key_metadata + lane % 4 * 8 +
                 tile / (Pages::key_group / tile_extent) * 4 * Pages::key_dim),
        shift(tile * width * 4 % 16) {}

  /// `first` is a multiple of 4: as many steps fill whole runs.
  KVTILT_HD void load(int, int first, int end, Words (&words)[ahead]) const {
    const std::byte* from = codes + first / 4 * (quarters / 4 * 512);
    const std::byte* group = metadata + first * 2 * tile_extent;
    std::uint64_t scale[ahead];
    std::uint64_t low[ahead];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < ahead; ++i)
      if (first + i < end) {
        const std::byte* at = from + run_offset(i * quarters / 4);
        words[i].word[0] = *reinterpret_cast<const std::uint32_t*>(at);
        words[i].word[1] =
            width == 8 ? *reinterpret_cast<const std::uint32_t*>(at + 4) : std::uint32_t{0};
        scale[i] = *reinterpret_cast<const std::uint64_t*>(group + i * 2 * tile_extent);
        low[i] = *reinterpret_cast<const std::uint64_t*>(group + 2 * Pages::key_dim +
                                                         i * 2 * tile_extent);
      }
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < ahead; ++i)
      if (first + i < end) {
        std::uint32_t code[4];
        decode_codes<width>(width < 4 ? words[i].word[0] >> shift : words[i].word[0],
                            words[i].word[1], code);
        KVTILT_DEVICE_UNROLL
        for (int reg = 0; reg < 4; ++reg)
          words[i].word[reg] =
              decode_value(code[reg], static_cast<std::uint32_t>(scale[i] >> (reg / 2 * 32)),
                           static_cast<std::uint32_t>(low[i] >> (reg / 2 * 32)));
      }
  }
};

/// Values of 16 tokens, per token; source of stage_fragments().
template <class Pages>
struct KnownValues {
  static constexpr int ahead = 4;
  static constexpr int width = Pages::value_bits;
  static constexpr int channel_tiles = Pages::value_dim / tile_extent;
  static constexpr int group_tiles = Pages::value_group / tile_extent;
  /// `ahead` tiles fill whole words of one plane.
  static constexpr bool supported =
      !Pages::channel_values && planes(width).count == 1 && channel_tiles % ahead == 0;

  const std::byte* codes;     ///< the lane's
  const std::byte* metadata;  ///< scales of the lane's tokens in band 0
  int word;                   ///< the tile's first

  KVTILT_HD KnownValues(const std::byte* block, int tile, int lane)
      : codes(block + Pages::value_codes + lane * 16),
        metadata(block + Pages::value_metadata + tile * 2 * tile_extent + lane % 4 * 8),
        word(tile * (channel_tiles * width / 4)) {}

  KVTILT_HD void load(int, int first, int, Words (&words)[ahead]) const {
    constexpr int held = width < 4 ? width : 4;  // words loaded at a time
    Words packed[width == 8 ? 2 : 1];
    KVTILT_DEVICE_UNROLL
    for (int run = 0; run < (width == 8 ? 2 : 1); ++run) {
      const std::byte* from = codes + run_offset(word + first * width / 4 + run * 4);
      if constexpr (held == 4)
        packed[run] = load_words(from);
      else
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < held; ++i)
          packed[run].word[i] = *reinterpret_cast<const std::uint32_t*>(from + i * 4);
    }
    std::uint32_t scale[2]{};
    std::uint32_t minimum[2]{};
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < ahead; ++i) {
      if (i % group_tiles == 0) {
        const std::byte* band = metadata + (first + i) / group_tiles * (4 * Pages::page_tokens);
        load_entries(band, scale);
        load_entries(band + 2 * Pages::page_tokens, minimum);
      }
      std::uint32_t code[4];
      const std::uint32_t(&word)[4] = packed[i * width / 16].word;
      decode_codes<width>(word[i * width / 4 % 4] >> (i * width * 4 % 16),
                          word[(i * width / 4 + 1) % 4], code);
      KVTILT_DEVICE_UNROLL
      for (int reg = 0; reg < 4; ++reg)
        words[i].word[reg] = decode_value(code[reg], scale[reg / 2], minimum[reg / 2]);
    }
  }

 private:
  /// Of the lane's tokens: the first and the third, then the others, as registers hold them.
  KVTILT_HD static void load_entries(const std::byte* from, std::uint32_t (&pair)[2]) {
    const std::uint64_t four = *reinterpret_cast<const std::uint64_t*>(from);
    const std::uint32_t low = static_cast<std::uint32_t>(four);
    const std::uint32_t high = static_cast<std::uint32_t>(four >> 32);
    pair[0] = join_low(low, high);
    pair[1] = join_high(low, high);
  }
};

}  // namespace kvtilt::cuda
