// SPDX-License-Identifier: MIT
/// One warp attends to one sealed page without decoding it. With keys scaled per channel c and values
/// scaled per token t (scale s, minimum z, weight p)
///
///     q.k    = sum_c (q_c s_c) code_c + sum_c q_c z_c        scales go into the query once a group,
///                                                            minima take one more product
///     output = sum_t (p_t s_t) code_t + sum_t p_t z_t        scales go into the weights, minima
///                                                            into one number per column and group
///
/// Keys per token and values per channel use row_scales.hpp. Codes enter the tensor cores as fp16
/// subnormals (exact and at full rate on an H200: bench/results/h200-probes.json), so a register of
/// two codes costs one AND. About 690 warp instructions for 64 tokens of 128 channels, 72 of them mma
/// (tests/compile/kernels); widths in several planes cost 260 to 600 more per tensor.
#pragma once

#include <kvtilt/cuda/attention/row_scales.hpp>
#include <kvtilt/cuda/attention/scores.hpp>
#include <kvtilt/cuda/attention/work.hpp>
#include <kvtilt/cuda/words.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace kvtilt::cuda {

/// Default group of scales per token: all channels of a head, or as many as a group may have.
KVTILT_HD constexpr int token_group(int dim) { return dim < max_group ? dim : max_group; }

/// Whether each page's products with the values are summed separately, then added to the output. Tensor
/// cores cut each term off at 2^-25 of the largest, and sums of codes only grow: over 128 pages, a
/// warp's part of 32K tokens, they would lose 2^-14 (8 bits) or 2^-15 (4 bits) of themselves, and more
/// of what remains beside minima of the opposite sign. With 2 bits the loss is 2^-16, not worth 32
/// additions a page.
KVTILT_HD constexpr bool sums_pages_apart(int bits) { return bits > 2; }

/// All that a kernel is compiled for about its pages. `Keys` and `Values` say whether scales are per
/// channel or per token; TokenKeyTraits and ChannelValueTraits change the default of one of them.
template <int KeyBits, int ValueBits, int KeyDim, int ValueDim = KeyDim, int PageTokens = 64,
          int KeyGroup = PageTokens, int ValueGroup = token_group(ValueDim),
          Granularity Keys = Granularity::PerChannel, Granularity Values = Granularity::PerToken>
struct PageTraits {
  static constexpr int key_bits = KeyBits;
  static constexpr int value_bits = ValueBits;
  static constexpr int key_dim = KeyDim;
  static constexpr int value_dim = ValueDim;
  static constexpr int page_tokens = PageTokens;
  static constexpr int key_group = KeyGroup;
  static constexpr int value_group = ValueGroup;
  static constexpr bool token_keys = Keys == Granularity::PerToken;
  static constexpr bool channel_values = Values == Granularity::PerChannel;
  static constexpr bool sums_apart = !channel_values && sums_pages_apart(ValueBits);

  /// Layout of a head's page: the same for every range rule.
  static constexpr HeadLayout layout() {
    return head_layout(
        {key_format(KeyBits, Keys, KeyGroup), value_format(ValueBits, Values, ValueGroup)}, KeyDim,
        ValueDim, PageTokens, 0);
  }
  static constexpr std::uint32_t key_codes = layout().key.codes;
  static constexpr std::uint32_t key_metadata = layout().key.metadata;
  static constexpr std::uint32_t value_codes = layout().value.codes;
  static constexpr std::uint32_t value_metadata = layout().value.metadata;
  static constexpr std::uint32_t bytes = static_cast<std::uint32_t>(layout().value.end());
  static constexpr std::uint32_t head_bytes = static_cast<std::uint32_t>(layout().bytes());

  static constexpr bool generic = false;
  static constexpr bool mixed = false;
  static constexpr int page_units = 1;
  static constexpr std::uint32_t unit_bytes = bytes;
  /// A stage also has room for a 16-bit tile, of sinks or a tail.
  static constexpr std::uint32_t stage_bytes = bytes > half_tile_bytes(KeyDim) +
                                                           half_tile_bytes(ValueDim)
                                                   ? bytes
                                                   : half_tile_bytes(KeyDim) +
                                                         half_tile_bytes(ValueDim);

  /// Whether pages of these resolved formats have this layout.
  [[nodiscard]] KVTILT_HD static constexpr bool describes(const Format& key, const Format& value) {
    return key.bits == KeyBits && value.bits == ValueBits && key.granularity == Keys &&
           value.granularity == Values && key.group == KeyGroup && value.group == ValueGroup;
  }

  // Groups divide a channel's tokens, or a token's channels. A band is the i-th groups of all channels,
  // or of all tokens.
  static constexpr int key_extent = token_keys ? KeyDim : PageTokens;
  static constexpr int value_extent = channel_values ? PageTokens : ValueDim;
  static constexpr int key_bands = key_extent / KeyGroup;
  static constexpr int value_bands = ceil_div(value_extent, ValueGroup);
  static_assert(key_bands * KeyGroup == key_extent &&
                    (!channel_values || value_bands * ValueGroup == value_extent) &&
                    KeyGroup % tile_extent == 0 && ValueGroup % tile_extent == 0,
                "groups are whole tiles, the last as long as the others; a token's values may end "
                "with a shorter one");

  using State = std::conditional_t<
      channel_values, AttendState<ValueDim, 0, 1>,
      AttendState<ValueDim, outer_shift(ValueBits), value_bands, ValueGroup / tile_extent>>;
};

template <int KeyBits, int ValueBits, int KeyDim, int ValueDim = KeyDim, int PageTokens = 64,
          int KeyGroup = token_group(KeyDim), int ValueGroup = token_group(ValueDim)>
using TokenKeyTraits = PageTraits<KeyBits, ValueBits, KeyDim, ValueDim, PageTokens, KeyGroup,
                                  ValueGroup, Granularity::PerToken>;
template <int KeyBits, int ValueBits, int KeyDim, int ValueDim = KeyDim, int PageTokens = 64,
          int KeyGroup = PageTokens, int ValueGroup = PageTokens>
using ChannelValueTraits = PageTraits<KeyBits, ValueBits, KeyDim, ValueDim, PageTokens, KeyGroup,
                                      ValueGroup, Granularity::PerChannel, Granularity::PerChannel>;

template <class Traits>
using PageScores =
    Scores<Traits::page_tokens / tile_extent, Traits::token_keys ? 1 : Traits::key_bands>;

/// Multiplies the page's keys, scaled per channel, with the query.
template <class Traits, class Threads>
KVTILT_HD void score_channel_keys(Threads& threads, const std::byte* page,
                                  const QueryTile<Traits::key_dim>& query,
                                  PageScores<Traits>& scores) {
  constexpr int width = Traits::key_bits;
  constexpr int tiles = Traits::page_tokens / tile_extent;
  constexpr int band_tiles = Traits::key_group / tile_extent;
  constexpr int steps = Traits::key_dim / tile_extent;
  constexpr std::uint32_t inner_factor = half_power(-inner_shift(width)) * 0x10001u;
  const int lane = threads.lane();
  const std::byte* codes = page + Traits::key_codes + lane * 16;
  const std::byte* metadata = page + Traits::key_metadata + lane % 4 * 8;
  KVTILT_DEVICE_UNROLL
  for (int band = 0; band < Traits::key_bands; ++band) {
    // The minima of two steps are an A operand as loaded: even rows hold channels 4t and 4t + 1 of
    // each step, odd rows the other two. Each half of the query has its own product, whose even
    // (half 0) or odd rows (half 1) are the sums; the other rows mean nothing. All even rows are
    // alike, and all odd ones, so every lane gets its columns' sums.
    float minimum[2][4];
    std::uint32_t minima[4] = {};
    TileReader<width, tiles * steps> reader;
    KVTILT_DEVICE_UNROLL
    for (int step = 0; step < steps; ++step) {
      const std::byte* group = metadata + band * 4 * Traits::key_dim + step * 2 * tile_extent;
      const std::uint64_t scale = load_double_word(group);
      const std::uint64_t low = load_double_word(group + 2 * Traits::key_dim);
      minima[step % 2 * 2] = static_cast<std::uint32_t>(low);
      minima[step % 2 * 2 + 1] = static_cast<std::uint32_t>(low >> 32);
      if (step % 2 == 1 || step + 1 == steps) {
        const int before = step / 2 * 2;
        KVTILT_DEVICE_UNROLL
        for (int half = 0; half < 2; ++half) {
          const std::uint32_t b0 = query.half[before][half];
          const std::uint32_t b1 = step == before ? 0 : query.half[step][half];
          if (before == 0)
            threads.first_mma(minimum[half], minima, b0, b1);
          else
            threads.mma(minimum[half], minima, b0, b1);
        }
      }
      const std::uint32_t first =
          multiply_halves(query.half[step][0], static_cast<std::uint32_t>(scale));
      std::uint32_t second =
          multiply_halves(query.half[step][1], static_cast<std::uint32_t>(scale >> 32));
      if constexpr (inner_shift(width) > 0) second = multiply_halves(second, inner_factor);
      KVTILT_DEVICE_UNROLL
      for (int in_band = 0; in_band < band_tiles; ++in_band) {
        const int tile = band * band_tiles + in_band;
        std::uint32_t a[4];
        reader.read(codes, step * tiles + tile, a);
        if (step == 0)
          threads.first_mma(scores.product[tile], a, first, second);
        else
          threads.mma(scores.product[tile], a, first, second);
      }
    }
    KVTILT_DEVICE_UNROLL
    for (int column = 0; column < 2; ++column)
      scores.bias[band][column] =
          (minimum[0][column] + minimum[1][column + 2]) * query.factor[column];
  }
  KVTILT_DEVICE_UNROLL
  for (int e = 0; e < 4; ++e)
    scores.factor[e] = query.factor[e % 2] * float_power(24 - (e / 2) * outer_shift(width));
}

/// The same for keys scaled per token.
template <class Traits, class Threads>
KVTILT_HD void score_token_keys(Threads& threads, const std::byte* page,
                                const QueryTile<Traits::key_dim>& query,
                                PageScores<Traits>& scores) {
  constexpr int tiles = Traits::page_tokens / tile_extent;
  KVTILT_DEVICE_UNROLL
  for (int tile = 0; tile < tiles; ++tile)
    KVTILT_DEVICE_UNROLL
    for (int e = 0; e < 4; ++e) scores.product[tile][e] = 0.0f;
  multiply_scaled_rows<Traits::key_bits, tiles, Traits::key_dim / tile_extent,
                       Traits::key_group / tile_extent>(
      threads, page + Traits::key_codes + threads.lane() * 16, page + Traits::key_metadata,
      query.half, scores.product);
  KVTILT_DEVICE_UNROLL
  for (int e = 0; e < 4; ++e) scores.factor[e] = query.factor[e % 2];
  scores.bias[0][0] = scores.bias[0][1] = 0.0f;
}

/// Computes the page's scores.
template <class Traits, class Threads>
KVTILT_HD void score_page(Threads& threads, const std::byte* page,
                          const QueryTile<Traits::key_dim>& query, PageScores<Traits>& scores) {
  if constexpr (Traits::token_keys)
    score_token_keys<Traits>(threads, page, query, scores);
  else
    score_channel_keys<Traits>(threads, page, query, scores);
}

/// Scales of a page's values per token: of this lane's two tokens of each tile, by group and tile.
template <class Traits>
struct ValueScales {
  static constexpr int tiles = Traits::page_tokens / tile_extent;
  static constexpr int band_stride = 4 * Traits::page_tokens;  // bytes of scales and minima

  std::uint32_t pair[Traits::value_bands][tiles];

  KVTILT_HD static std::uint32_t load(const std::byte* page, int lane, int band, int tile,
                                      bool minimum) {
    return load_word(page + Traits::value_metadata + lane / 4 * 4 + band * band_stride +
                     (minimum ? band_stride / 2 : 0) + tile * 2 * tile_extent);
  }

  /// Loads the scales. Returns the exponent of a power of two above all of the page's scales.
  template <class Threads>
  KVTILT_HD int load_all(Threads& threads, const std::byte* page) {
    std::uint32_t most = 0;
    KVTILT_DEVICE_UNROLL
    for (int band = 0; band < Traits::value_bands; ++band)
      KVTILT_DEVICE_UNROLL
      for (int tile = 0; tile < tiles; ++tile) {
        pair[band][tile] = load(page, threads.lane(), band, tile, false);
        most = max_halves(most, pair[band][tile]);
      }
    most = threads.max_over_warp((most & 0xffffu) > most >> 16 ? most & 0xffffu : most >> 16);
    return static_cast<int>(most >> 10) - 14;
  }
};

/// Adds the page's values, scaled per token, times their weights to the state.
template <class Traits, class Threads>
KVTILT_HD void mix_token_values(Threads& threads, const std::byte* page,
                                const PageScores<Traits>& weights,
                                const ValueScales<Traits>& scales, typename Traits::State& state) {
  constexpr int width = Traits::value_bits;
  constexpr int bands = Traits::value_bands;
  constexpr int value_tiles = Traits::value_dim / tile_extent;
  const std::byte* codes = page + Traits::value_codes + threads.lane() * 16;
  const std::uint32_t normalise =
      pack_halves(float_power(-state.exponent), float_power(-state.exponent - inner_shift(width)));
  constexpr bool apart = Traits::sums_apart;
  float sum[apart ? value_tiles : 1][4];
  TileReader<width, ValueScales<Traits>::tiles * value_tiles> reader;
  KVTILT_DEVICE_UNROLL
  for (int tile = 0; tile < ValueScales<Traits>::tiles; ++tile) {
    const float(&weight)[4] = weights.product[tile];
    std::uint32_t probability[bands][2];
    KVTILT_DEVICE_UNROLL
    for (int band = 0; band < bands; ++band) {
      const std::uint32_t scale = multiply_halves(scales.pair[band][tile], normalise);
      const std::uint32_t minimum =
          ValueScales<Traits>::load(page, threads.lane(), band, tile, true);
      const float even = low_half(scale);
      const float odd = high_half(scale);
      KVTILT_DEVICE_UNROLL
      for (int column = 0; column < 2; ++column)
        state.minima[band][column] =
            std::fma(weight[column], low_half(minimum),
                     std::fma(weight[column + 2], high_half(minimum), state.minima[band][column]));
      probability[band][0] = threads.transpose(pack_halves(weight[0] * even, weight[1] * even));
      probability[band][1] = threads.transpose(pack_halves(weight[2] * odd, weight[3] * odd));
    }
    KVTILT_DEVICE_UNROLL
    for (int channel_tile = 0; channel_tile < value_tiles; ++channel_tile) {
      std::uint32_t a[4];
      reader.read(codes, tile * value_tiles + channel_tile, a);
      const int band = channel_tile / (Traits::value_group / tile_extent);
      const std::uint32_t(&b)[2] = probability[band];
      if constexpr (!apart)
        threads.mma(state.output[channel_tile], a, b[0], b[1]);
      else if (tile == 0)
        threads.first_mma(sum[channel_tile], a, b[0], b[1]);
      else
        threads.mma(sum[channel_tile], a, b[0], b[1]);
    }
  }
  KVTILT_DEVICE_UNROLL
  for (int channel_tile = 0; channel_tile < value_tiles && apart; ++channel_tile)
    KVTILT_DEVICE_UNROLL
    for (int e = 0; e < 4; ++e) state.output[channel_tile][e] += sum[apart ? channel_tile : 0][e];
}

/// The same for values scaled per channel.
template <class Traits, class Threads>
KVTILT_HD void mix_channel_values(Threads& threads, const std::byte* page,
                                  const PageScores<Traits>& weights,
                                  typename Traits::State& state) {
  constexpr int tiles = Traits::page_tokens / tile_extent;
  std::uint32_t probability[tiles][2];
  KVTILT_DEVICE_UNROLL
  for (int tile = 0; tile < tiles; ++tile)
    KVTILT_DEVICE_UNROLL
    for (int odd = 0; odd < 2; ++odd)
      probability[tile][odd] = threads.transpose(
          pack_halves(weights.product[tile][2 * odd], weights.product[tile][2 * odd + 1]));
  multiply_scaled_rows<Traits::value_bits, Traits::value_dim / tile_extent, tiles,
                       Traits::value_group / tile_extent>(
      threads, page + Traits::value_codes + threads.lane() * 16, page + Traits::value_metadata,
      probability, state.output);
}

/// Turns logits into weights, and adds the page's weighted values to the state.
///
/// largest  the largest of this lane's logits, by column
template <class Traits, class Threads>
KVTILT_HD void mix_page(Threads& threads, const std::byte* page, const float (&largest)[2],
                        PageScores<Traits>& scores, typename Traits::State& state) {
  if constexpr (Traits::channel_values) {  // outputs stay in value units
    state.raise(threads, largest, least_exponent);
    scores.weigh(state);
    mix_channel_values<Traits>(threads, page, scores, state);
  } else {
    ValueScales<Traits> scales;
    const int exponent = scales.load_all(threads, page);
    state.use_code_units();
    state.raise(threads, largest, exponent);
    scores.weigh(state);
    mix_token_values<Traits>(threads, page, scores, scales, state);
  }
}

/// Zeros the scales and minima of values that only slots without a token have: they may be NaN, which
/// their weights of 0 would not cancel. Done in the ring's stage, so that full pages pay nothing.
template <class Traits, class Threads>
KVTILT_HD void clear_absent_values(Threads& threads, std::byte* page, int tokens) {
  std::uint16_t* metadata = reinterpret_cast<std::uint16_t*>(page + Traits::value_metadata);
  if constexpr (Traits::channel_values) {  // [group of tokens][scales, minima][channel]
    constexpr int group = 2 * Traits::value_dim;
    const int present = (tokens + Traits::value_group - 1) / Traits::value_group;
    KVTILT_DEVICE_LOOP
    for (int i = present * group + threads.lane(); i < Traits::value_bands * group; i += warp_lanes)
      metadata[i] = 0;
  } else {  // [group of channels][scales, minima][token]
    constexpr int slots = Traits::page_tokens;
    KVTILT_DEVICE_LOOP
    for (int slot = tokens + threads.lane(); slot < slots; slot += warp_lanes)
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 2 * Traits::value_bands; ++i) metadata[i * slots + slot] = 0;
  }
  threads.hand_over_shared();
  threads.sync_warp();
}

/// Attends to one sealed page. `special`: some column does not see the whole page, or logits have a cap
/// or slopes; the same in all lanes.
template <class Traits, class Threads>
KVTILT_HD void attend_page(Threads& threads, const AttendArguments& arguments, const ItemRows& item,
                           std::byte* page, std::int64_t first_position, int tokens, bool special,
                           const QueryTile<Traits::key_dim>& query, typename Traits::State& state) {
  if (special && tokens < Traits::page_tokens) clear_absent_values<Traits>(threads, page, tokens);
  PageScores<Traits> scores;
  score_page<Traits>(threads, page, query, scores);
  if (special)
    scores.transform_and_mask(arguments, item, threads.lane(), first_position, tokens, false);
  float largest[2];
  scores.largest(largest);
  mix_page<Traits>(threads, page, largest, scores, state);
}

}  // namespace kvtilt::cuda
