// SPDX-License-Identifier: MIT
/// Reads values that are in their keys: latents of multi-head latent attention.
#pragma once

#include <kvtilt/cuda/attention/generic_page.hpp>
#include <kvtilt/cuda/half2.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Decodes 16 tokens of values that are the first channels of keys: a fragment source for
/// attend_tile(). The turned halves of a key's registers are a value's: four permutations and four
/// movmatrix for 16 x 16 numbers.
template <int KeyDim, int Ahead, class Threads>
struct ValuesInKeys {
  static constexpr int ahead = Ahead;

  Threads* threads;
  PageFragments<Role::Keys, KeyDim, Ahead> keys;

  KVTILT_HD void load(int lane, int first, int end, Words (&words)[ahead]) const {
    keys.load(lane, first, end, words);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < ahead; ++i)
      if (first + i < end) {
        // Channels 0 and 2, 1 and 3 of a lane's four: even and odd outer neighbours of a value.
        const std::uint32_t(&key)[4] = words[i].word;
        const std::uint32_t even[2] = {join_low(key[0], key[2]), join_low(key[1], key[3])};
        const std::uint32_t odd[2] = {join_high(key[0], key[2]), join_high(key[1], key[3])};
        KVTILT_DEVICE_UNROLL
        for (int member = 0; member < 2; ++member) {
          words[i].word[2 * member] = threads->transpose(even[member]);
          words[i].word[2 * member + 1] = threads->transpose(odd[member]);
        }
      }
  }
};

/// Kernel for every recipe of layers whose values are the first ValueDim channels of their keys
/// (LayerShape::latent). It decodes those twice.
template <int KeyDim, int ValueDim>
struct LatentTraits : GenericTraits<KeyDim, ValueDim> {
  static_assert(ValueDim <= KeyDim);
  using GenericTraits<KeyDim, ValueDim>::ahead;

  template <class Threads>
  [[nodiscard]] KVTILT_HD static ValuesInKeys<KeyDim, ahead, Threads> values(Threads& threads,
                                                                             const HeadLayout& head,
                                                                             const std::byte* block,
                                                                             int tile) {
    return {&threads, {&head.key, block, tile}};
  }

  [[nodiscard]] static constexpr bool supports(const Recipe& recipe, int page_tokens) {
    return recipe.value == in_keys && supports_order({page_tokens, KeyDim}, recipe.key.bits);
  }
};

}  // namespace kvtilt::cuda
