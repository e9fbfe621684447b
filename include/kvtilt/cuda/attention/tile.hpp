// SPDX-License-Identifier: MIT
/// One warp attends to a tile of 16 tokens whose fragments hold fp16 values: of sinks, tails and
/// 16-bit layers, whose words are mma operands as they are stored, or of codes that were decoded
/// into registers (generic_page.hpp).
#pragma once

#include <kvtilt/cuda/attention/scores.hpp>
#include <kvtilt/cuda/words.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Tiles of a run to load together: of `most`, its half, its quarter and so on the first that
/// divides the run. If none does, `most`: loads then need predicates, for which prefill lacks
/// registers.
KVTILT_HD constexpr int tiles_ahead(int run, int most) {
  for (int ahead = most; ahead > 1; ahead /= 2)
    if (run % ahead == 0) return ahead;
  return most;
}

/// 16 tokens in 16 bits, in global or shared memory; a fragment source for attend_tile().
struct HalfFragments {
  static constexpr int ahead = 8;  ///< tiles loaded together: 4 registers each

  const std::byte* from;

  /// Loads up to `Ahead` channel tiles from `first` on, those below `end`.
  template <int Ahead>
  KVTILT_HD void load(int lane, int first, int end, Words (&words)[Ahead]) const {
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < Ahead; ++i)
      if (first + i < end)
        words[i] = load_words(from + (first + i) * fragment_tile_bytes + lane * 16);
  }
};

/// Zeros a tile's values but for the first `tokens` tokens.
struct KeepTokens {
  std::uint32_t keep[2];

  KVTILT_HD KeepTokens(int lane, int tokens) {
    // The lane holds tokens 4t to 4t + 3 (t = lane % 4): the first and the third in R0 and R1.
    const int held = tokens - lane % 4 * 4;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 2; ++i)
      keep[i] = (i < held ? 0xffffu : 0u) | (i + 2 < held ? 0xffff0000u : 0u);
  }
  KVTILT_HD void operator()(Words& words) const {
    KVTILT_DEVICE_UNROLL
    for (int reg = 0; reg < 4; ++reg) words.word[reg] &= keep[reg / 2];
  }
};

/// What a kernel for 16-bit layers is compiled for; it takes their sealed pages a tile at a time.
template <int KeyDim, int ValueDim = KeyDim, int PageTokens = 64>
struct HalfTraits {
  static constexpr int key_bits = half_bits;
  static constexpr int value_bits = half_bits;
  static constexpr int key_dim = KeyDim;
  static constexpr int value_dim = ValueDim;
  static constexpr int page_tokens = PageTokens;
  static constexpr bool generic = false;
  static constexpr bool mixed = false;
  static constexpr bool sums_apart = false;
  static constexpr int page_units = PageTokens / tile_extent;
  static constexpr std::uint32_t key_bytes = half_tile_bytes(KeyDim);
  static constexpr std::uint32_t value_bytes = half_tile_bytes(ValueDim);
  static constexpr std::uint32_t unit_bytes = key_bytes + value_bytes;
  static constexpr std::uint32_t stage_bytes = unit_bytes;
  using State = AttendState<ValueDim, 0, 1>;

  [[nodiscard]] KVTILT_HD static constexpr bool describes(const Format& key, const Format& value) {
    return key.bits == half_bits && value.bits == half_bits;
  }
};

/// Attends to one tile.
///
/// keys, values  fragment sources, like HalfFragments
/// tokens        slots from `tokens` on may hold anything
/// special       whether logits need transform_and_mask(): PlainRange::excludes()
template <int KeyDim, int ValueDim, class Threads, class Keys, class Values, class State>
KVTILT_HD void attend_tile(Threads& threads, const AttendArguments& arguments, const ItemRows& item,
                           const Keys& keys, const Values& values, std::int64_t first_position,
                           int tokens, bool sink, bool special, const QueryTile<KeyDim>& query,
                           State& state) {
  constexpr int steps = KeyDim / tile_extent;
  constexpr int channel_tiles = ValueDim / tile_extent;
  static_assert(Keys::ahead == Values::ahead);
  constexpr int ahead = Keys::ahead;
  const int lane = threads.lane();
  Scores<1, 1> scores;
  KVTILT_DEVICE_UNROLL
  for (int e = 0; e < 4; ++e) scores.factor[e] = query.factor[e % 2];
  scores.bias[0][0] = scores.bias[0][1] = 0.0f;
  KVTILT_DEVICE_UNROLL
  for (int first = 0; first < steps; first += ahead) {
    Words words[ahead];
    keys.load(lane, first, steps, words);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < ahead; ++i)
      if (first + i == 0)
        threads.first_mma(scores.product[0], words[i].word, query.half[0][0], query.half[0][1]);
      else if (first + i < steps)
        threads.mma(scores.product[0], words[i].word, query.half[first + i][0],
                    query.half[first + i][1]);
  }
  if (special) scores.transform_and_mask(arguments, item, lane, first_position, tokens, sink);
  float largest[2];
  scores.largest(largest);
  state.use_value_units();
  state.raise(threads, largest, least_exponent);
  scores.weigh(state);

  const float(&weight)[4] = scores.product[0];
  const std::uint32_t even = threads.transpose(pack_halves(weight[0], weight[1]));
  const std::uint32_t odd = threads.transpose(pack_halves(weight[2], weight[3]));
  const KeepTokens keep(lane, tokens);  // what lies in unused slots may be NaN
  KVTILT_DEVICE_UNROLL
  for (int first = 0; first < channel_tiles; first += ahead) {
    Words words[ahead];
    values.load(lane, first, channel_tiles, words);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < ahead; ++i)
      if (first + i < channel_tiles) {
        if (special) keep(words[i]);
        threads.mma(state.output[first + i], words[i].word, even, odd);
      }
  }
}

}  // namespace kvtilt::cuda
