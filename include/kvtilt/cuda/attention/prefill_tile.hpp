// SPDX-License-Identifier: MIT
/// Stages tiles of 16 tokens as fp16 fragments in shared memory: codes are decoded once for all query
/// rows of a block. Fragments are B operands of mma without a shuffle: {R0, R2} for keys of even
/// tokens, {R1, R3} of odd ones, and likewise for values by channels. A lane's words are stored as
/// R0 R2 R1 R3: operands are pairs of neighbouring registers, so another order would cost moves.
#pragma once

#include <kvtilt/cuda/attention/generic_page.hpp>
#include <kvtilt/cuda/attention/latent_page.hpp>
#include <kvtilt/cuda/attention/known_page.hpp>
#include <kvtilt/cuda/attention/mixed_pages.hpp>
#include <kvtilt/cuda/attention/prefill_work.hpp>
#include <kvtilt/cuda/page/input_tiles.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Most channels of values: the sums of 16 rows then fill half a warp's registers.
inline constexpr int most_prefill_values = 256;

/// Whether a kernel of an AttendKernels has one for prefill beside it.
template <class Pages>
constexpr bool prefills(Pages) {
  return Pages::value_dim <= most_prefill_values;
}
template <int KeyDim, int ValueDim>
constexpr bool prefills(LatentTraits<KeyDim, ValueDim>) {
  return false;
}

/// What a prefill kernel is compiled for. Pages: one of an AttendKernels.
template <class Pages>
struct PrefillTraits {
  static_assert(Pages::value_dim <= most_prefill_values);
  using pages = Pages;
  static constexpr int key_dim = Pages::key_dim;
  static constexpr int value_dim = Pages::value_dim;
  static constexpr int steps = key_dim / tile_extent;
  static constexpr int channel_tiles = value_dim / tile_extent;
  static constexpr int row_tiles = value_dim <= 128 ? 2 : 1;  ///< of 16 rows, per warp
  static constexpr int warp_rows = row_tiles * tile_extent;
  static constexpr int score_tiles = 4 / row_tiles;  ///< tiles whose logits are held at a time
  static constexpr std::uint32_t key_bytes = half_tile_bytes(key_dim);  ///< of 16 tokens
  static constexpr std::uint32_t value_bytes = half_tile_bytes(value_dim);
  static constexpr std::uint32_t stage_bytes = unit_tiles * (key_bytes + value_bytes);
};

/// Tiles of a sealed page; where it is a constant, a division by it takes two instructions.
template <class Pages>
KVTILT_HD int page_tiles(const LayerView& layer) {
  if constexpr (Pages::generic)
    return layer.page_tokens / tile_extent;
  else
    return Pages::page_tokens / tile_extent;
}

/// 16 tokens of a chunk, of one head, in an aligned 16-bit tensor; a fragment source whose words need
/// rounded().
template <Role role>
struct ChunkFragments {
  static constexpr int ahead = 4;

  const std::uint16_t* first;  ///< channel 0 of the first token
  std::int64_t stride;         ///< elements from token to token
  bool bf16;

  template <int Ahead>
  KVTILT_HD void load(int lane, int begin, int end, Words (&words)[Ahead]) const {
    constexpr bool keys = role == Role::Keys;
    const std::uint16_t* from = first + (keys ? lane / 4 * 2 : lane % 4 * 4) * stride +
                                (keys ? lane % 4 * 4 : lane / 4 * 2);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < Ahead; ++i) {
      if (begin + i >= end) continue;
      detail::RawTile<role> raw;
      raw.load(from + (begin + i) * tile_extent, stride);
      words[i] = bit_cast<Words>(raw);
    }
  }
};

/// The fragment in fp16 of what a source loaded. Apart from load(), so that nothing waits for the first
/// words while others have yet to be asked for.
template <class Source>
KVTILT_HD Words rounded(const Source&, const Words& loaded) {
  return loaded;
}
template <Role role>
KVTILT_HD Words rounded(const ChunkFragments<role>& source, const Words& loaded) {
  detail::RawTile<role> raw = bit_cast<detail::RawTile<role>>(loaded);
  if (source.bf16) raw.widen_bf16();
  return bit_cast<Words>(raw.fragment());
}

/// Stages `tokens` rows of any type and alignment, from element `first` on, in `Count` fragments;
/// other slots become 0. Element by element: sums fill the registers.
template <Role role, int Count, class Threads>
KVTILT_HD void stage_elements(Threads& threads, const TensorView& rows, std::int64_t first,
                              int tokens, std::byte* to) {
  constexpr bool keys = role == Role::Keys;
  const int lane = threads.lane();
  KVTILT_DEVICE_LOOP
  for (int i = 0; i < Count * 8; ++i) {
    // Of keys the lane holds 2 tokens of 4 channels, of values 4 tokens of 2.
    const int token = keys ? lane / 4 * 2 + i % 2 : lane % 4 * 4 + i % 4;
    const int channel =
        i / 8 * tile_extent + (keys ? lane % 4 * 4 + i / 2 % 4 : lane / 4 * 2 + i / 4 % 2);
    const FragmentPlace place =
        fragment_place(role, keys ? token : channel, keys ? channel : token);
    const F16 half =
        token < tokens
            ? nearest_half(detail::read_element(rows, first + token * rows.token_stride + channel))
            : F16{0};
    const int word = place.reg % 2 * 2 + place.reg / 2;
    reinterpret_cast<F16*>(to + i / 8 * fragment_tile_bytes + lane * 16)[word * 2 + place.half] =
        half;
  }
}

/// Stores a lane's words of one fragment in shared memory, in the order for mma.
KVTILT_HD inline void store_fragment(int lane, const Words& words, std::byte* to) {
  const std::uint32_t(&reg)[4] = words.word;
  *reinterpret_cast<Words*>(to + lane * 16) = {{reg[0], reg[2], reg[1], reg[3]}};
}
template <int Count, class Source>
KVTILT_HD void store_fragments(int lane, const Source& source, const Words (&words)[Count],
                               std::byte* to) {
  KVTILT_DEVICE_UNROLL
  for (int i = 0; i < Count; ++i)
    store_fragment(lane, rounded(source, words[i]), to + i * fragment_tile_bytes);
}

/// Stages `Count` fragments of a tile from a source, [fragment][lane].
template <int Count, class Threads, class Source>
KVTILT_HD void stage_fragments(Threads& threads, const Source& source, std::byte* to) {
  constexpr int ahead = tiles_ahead(Count, Source::ahead);
  const int lane = threads.lane();
  KVTILT_DEVICE_LOOP
  for (int first = 0; first < Count; first += ahead) {
    Words words[ahead];
    source.load(lane, first, Count, words);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < ahead; ++i)
      if (first + i < Count)
        store_fragment(lane, rounded(source, words[i]), to + (first + i) * fragment_tile_bytes);
  }
}

/// Stages keys and values of 16 tokens in 16 bits. While no logits are held, registers have room for
/// all loads of 128 channels, so the latency of L2 is paid once.
template <int Keys, int Values, class Threads, class KeySource, class ValueSource>
KVTILT_HD void stage_halves(Threads& threads, const KeySource& key, const ValueSource& value,
                            std::byte* keys, std::byte* values) {
  constexpr int most = 2 * HalfFragments::ahead;
  if constexpr (Keys + Values > most) {
    stage_fragments<Keys>(threads, key, keys);
    stage_fragments<Values>(threads, value, values);
  } else {
    const int lane = threads.lane();
    Words words[Keys];
    Words more[Values];
    key.load(lane, 0, Keys, words);
    value.load(lane, 0, Values, more);
    store_fragments(lane, key, words, keys);
    store_fragments(lane, value, more, values);
  }
}

/// Zeros a tile's staged values but for the first `tokens` tokens; each lane changes what it wrote. A
/// pass of its own: most tiles are full, and pay neither instructions nor registers for it.
template <int Count, class Threads>
KVTILT_HD void clear_absent(Threads& threads, int tokens, std::byte* values) {
  const KeepTokens keep(threads.lane(), tokens);
  KVTILT_DEVICE_LOOP
  for (int i = 0; i < Count; ++i) {
    Words& words =
        *reinterpret_cast<Words*>(values + i * fragment_tile_bytes + threads.lane() * 16);
    KVTILT_DEVICE_UNROLL
    for (int word = 0; word < 4; ++word) words.word[word] &= keep.keep[word % 2];
  }
}

/// Stages 16 tokens of a chunk, of one head, rounded to fp16 as append does.
///
/// row  of the tensors, of the first token
template <class Traits, class Threads>
KVTILT_HD void stage_chunk(Threads& threads, const PrefillArguments& arguments, std::int64_t row,
                           int head, int tokens, std::byte* keys, std::byte* values) {
  const auto first = [&](const TensorView& rows) {
    return row * rows.token_stride + head * rows.head_stride;
  };
  const auto place = [&](const TensorView& rows) {
    return static_cast<const std::uint16_t*>(rows.data) + first(rows);
  };
  const auto aligned = [&](const TensorView& rows) {
    return rows.type != ElementType::F32 && rows.token_stride % 4 == 0 &&
           reinterpret_cast<std::uintptr_t>(place(rows)) % 8 == 0;
  };
  const TensorView& key = arguments.keys;
  const TensorView& value = arguments.values;
  if (tokens == tile_extent && aligned(key) && aligned(value)) {
    stage_halves<Traits::steps, Traits::channel_tiles>(
        threads,
        ChunkFragments<Role::Keys>{place(key), key.token_stride, key.type == ElementType::BF16},
        ChunkFragments<Role::Values>{place(value), value.token_stride,
                                     value.type == ElementType::BF16},
        keys, values);
  } else {
    stage_elements<Role::Keys, Traits::steps>(threads, key, first(key), tokens, keys);
    stage_elements<Role::Values, Traits::channel_tiles>(threads, value, first(value), tokens,
                                                        values);
  }
}

/// Whether pages are decoded with addresses and shifts known to the compiler (known_page.hpp), not
/// computed at run time (generic_page.hpp).
template <class Pages>
KVTILT_HD constexpr bool decodes_known_pages(Pages) {
  if constexpr (Pages::generic)
    return false;
  else if constexpr (Pages::key_bits == half_bits)
    return true;
  else
    return KnownFragments<Role::Keys, Pages>::supported &&
           KnownFragments<Role::Values, Pages>::supported;
}
template <class... Pages>
KVTILT_HD constexpr bool decodes_known_pages(MixedTraits<Pages...>) {
  return (decodes_known_pages(Pages{}) && ...);
}

/// Bytes of a head's page that blocks may copy to shared memory: where a page is one unit, and
/// decodes_known_pages() holds. 0 elsewhere.
template <class Pages>
KVTILT_HD constexpr std::uint32_t copied_page_bytes() {
  if constexpr (Pages::generic)
    return 0;
  else if constexpr (Pages::page_units != 1 || Pages::page_tokens != unit_tiles * tile_extent)
    return 0;
  else
    return decodes_known_pages(Pages{}) ? Pages::unit_bytes : 0;
}

/// Stages 16 tokens of a sealed page; tile.block is the head's part of it.
template <class Traits, class Pages, class Threads>
KVTILT_HD void stage_sealed(Pages, Threads& threads, const HeadLayout& head, const TokenTile& tile,
                            std::byte* keys, std::byte* values) {
  const std::byte* block = tile.block;
  if constexpr (!decodes_known_pages(Pages{})) {
    constexpr int ahead = 1;  // sums fill the registers
    stage_fragments<Traits::steps>(
        threads, PageFragments<Role::Keys, Traits::key_dim, ahead>{&head.key, block, tile.index},
        keys);
    stage_fragments<Traits::channel_tiles>(
        threads,
        PageFragments<Role::Values, Traits::value_dim, ahead>{&head.value, block, tile.index},
        values);
  } else if constexpr (Pages::key_bits == half_bits) {
    const std::byte* page_values = block + Pages::page_units * Traits::key_bytes;
    const std::uint32_t index = static_cast<std::uint32_t>(tile.index);
    stage_halves<Traits::steps, Traits::channel_tiles>(
        threads, HalfFragments{block + index * Traits::key_bytes},
        HalfFragments{page_values + index * Traits::value_bytes}, keys, values);
  } else {
    stage_fragments<Traits::steps>(
        threads, KnownFragments<Role::Keys, Pages>(block, tile.index, threads.lane()), keys);
    stage_fragments<Traits::channel_tiles>(
        threads, KnownFragments<Role::Values, Pages>(block, tile.index, threads.lane()), values);
  }
}
template <class Traits, class... Pages, class Threads>
KVTILT_HD void stage_sealed(MixedTraits<Pages...> mixed, Threads& threads, const HeadLayout& head,
                            const TokenTile& tile, std::byte* keys, std::byte* values) {
  mixed.with(mixed.kind_of(head),
             [&](auto pages) { stage_sealed<Traits>(pages, threads, head, tile, keys, values); });
}

/// Stages one warp's tile of a sealed page; tile.block is the head's part of it. Slots without a
/// token, scales and minima included, may hold NaN: keys may stay so, as their logits are replaced,
/// values become 0.
template <class Traits, class Threads>
KVTILT_HD void stage_sealed_tile(Threads& threads, const LayerView& layer, int kv_head,
                                 const TokenTile& tile, std::byte* keys, std::byte* values) {
  stage_sealed<Traits>(typename Traits::pages{}, threads, layer.head(PageKind::Sealed, kv_head),
                       tile, keys, values);
  if (tile.tokens < tile_extent) clear_absent<Traits::channel_tiles>(threads, tile.tokens, values);
}

/// The same for a tile of sinks, of a tail or of the chunk, or for none.
template <class Traits, class Threads>
KVTILT_HD void stage_unsealed_tile(Threads& threads, const PrefillArguments& arguments,
                                   const RowTile& rows, const SourceTile& tile, std::byte* keys,
                                   std::byte* values) {
  if (tile.source == TileSource::Half) {
    const HeadLayout& head =
        arguments.attend.layer.head(tile.at.sink ? PageKind::Sinks : PageKind::Tail, rows.kv_head);
    const std::byte* block = tile.at.block + head.offset;
    const std::uint32_t index = static_cast<std::uint32_t>(tile.at.index);
    stage_fragments<Traits::steps>(
        threads, HalfFragments{block + head.key.codes + index * Traits::key_bytes}, keys);
    stage_fragments<Traits::channel_tiles>(
        threads, HalfFragments{block + head.value.codes + index * Traits::value_bytes}, values);
    if (tile.at.tokens < tile_extent)
      clear_absent<Traits::channel_tiles>(threads, tile.at.tokens, values);
  } else if (tile.source == TileSource::Chunk) {
    stage_chunk<Traits>(threads, arguments, rows.first_row + tile.at.index, rows.kv_head,
                        tile.at.tokens, keys, values);
  } else {
    KVTILT_DEVICE_LOOP
    for (int tile_index = 0; tile_index < Traits::channel_tiles; ++tile_index)
      *reinterpret_cast<Words*>(values + tile_index * fragment_tile_bytes + threads.lane() * 16) =
          Words{};
  }
}

}  // namespace kvtilt::cuda
