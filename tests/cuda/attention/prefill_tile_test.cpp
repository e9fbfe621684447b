// SPDX-License-Identifier: MIT
// Staging of chunks in shared memory; prefill_block_test.cpp stages the other sources too.
#include <kvtilt/cuda/attention/prefill_tile.hpp>
#include <kvtilt/quant/recipe.hpp>

#include "support/emulated_threads.hpp"
#include "support/random_input.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::EmulatedThreads;
using test::Random;
using test::RandomInput;

constexpr int tile_dim = 64;
using TileTraits = PrefillTraits<GenericTraits<tile_dim>>;

/// The half that a staged tile holds for one element.
F16 staged(Role role, const std::byte* tile, int token, int channel) {
  const bool keys = role == Role::Keys;
  const FragmentPlace place = fragment_place(role, keys ? token : channel, keys ? channel : token);
  constexpr int word_of_reg[4] = {0, 2, 1, 3};
  F16 half;
  std::memcpy(&half,
              tile + channel / tile_extent * 512 + place.lane * 16 + word_of_reg[place.reg] * 4 +
                  place.half * 2,
              sizeof half);
  return half;
}

template <int Dim>
void expect_chunks_rounded() {
  using Traits = PrefillTraits<GenericTraits<Dim>>;
  constexpr std::uint32_t staged_bytes = Traits::key_bytes + Traits::value_bytes;
  Random random(1);
  int fast = 0;
  for (int round = 0; round < 60; ++round) {
    const int tokens = random.between(1, 50);
    const RandomInput keys(random, tokens, 2, Dim);
    const RandomInput values(random, tokens, 2, Dim);
    PrefillArguments arguments{};
    arguments.keys = keys.view();
    arguments.values = values.view();
    RowTile rows{};
    rows.kv_head = random.below(2);
    SourceTile tile{};
    tile.source = TileSource::Chunk;
    const int first = tile.at.index = random.below(tokens);
    tile.at.tokens = std::min(tokens - first, tile_extent);
    fast += tile.at.tokens == tile_extent && keys.view().type != ElementType::F32;
    std::vector<std::byte> to(staged_bytes + 4096, std::byte{0xff});
    test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
      stage_unsealed_tile<Traits>(threads, arguments, rows, tile, to.data(),
                                  to.data() + Traits::key_bytes);
    });
    int wrong = 0;
    for (int token = 0; token < tile_extent; ++token)
      for (int channel = 0; channel < Dim; ++channel) {
        const bool there = token < tile.at.tokens;
        const F16 key =
            there ? to_f16(keys.rows().at(first + token, rows.kv_head, channel)) : F16{0};
        const F16 value =
            there ? to_f16(values.rows().at(first + token, rows.kv_head, channel)) : F16{0};
        wrong += staged(Role::Keys, to.data(), token, channel).bits != key.bits;
        wrong +=
            staged(Role::Values, to.data() + Traits::key_bytes, token, channel).bits != value.bits;
      }
    for (std::size_t i = staged_bytes; i < to.size(); ++i) wrong += to[i] != std::byte{0xff};
    EXPECT_EQ(wrong, 0) << Dim << " channels, " << to_string(arguments.keys.type) << ", "
                        << to_string(arguments.values.type) << ", " << tile.at.tokens << " tokens";
  }
  EXPECT_GT(fast, 5) << "whole tiles of 16-bit elements";
}

/// Of 144 channels, nine tiles, not all loads are under way at once, and batches of them do not divide
/// the tiles.
TEST(PrefillTileRandom, ChunksOfAnyTypeAndStrideAreRoundedToHalf) {
  expect_chunks_rounded<tile_dim>();
  expect_chunks_rounded<128>();
  expect_chunks_rounded<144>();
}

TEST(PrefillTile, ValuesOfUnusedSlotsAreZero) {
  // A 16-bit block whose unused slots are NaN, and a tile without a source.
  constexpr int held = 5;
  const HeadLayout head = head_layout(Recipe{}, tile_dim, tile_dim, 64, 0);
  std::vector<std::byte> block(head.bytes(), std::byte{0xff});
  const F16 one = to_f16(1.0f);
  for (int token = 0; token < held; ++token)
    for (int channel = 0; channel < tile_dim; ++channel)
      std::memcpy(block.data() + head.value.codes +
                      half_offset(Role::Values, head.value.matrix, channel, 16 + token),
                  &one, sizeof one);
  PrefillArguments arguments{};
  arguments.attend.layer.heads[static_cast<int>(PageKind::Tail)] = &head;
  for (const TileSource source : {TileSource::Half, TileSource::Nothing}) {
    SourceTile tile{};
    tile.source = source;
    tile.at.block = block.data();
    tile.at.index = 1;
    tile.at.tokens = source == TileSource::Half ? held : 0;
    std::vector<std::byte> to(TileTraits::key_bytes + TileTraits::value_bytes, std::byte{0xff});
    test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
      stage_unsealed_tile<TileTraits>(threads, arguments, {}, tile, to.data(),
                                      to.data() + TileTraits::key_bytes);
    });
    for (int token = 0; token < tile_extent; ++token)
      for (int channel = 0; channel < tile_dim; ++channel)
        EXPECT_EQ(staged(Role::Values, to.data() + TileTraits::key_bytes, token, channel).bits,
                  token < tile.at.tokens ? one.bits : 0);
  }
}

/// A sealed page of 0xff bytes, whose scales and minima are NaN: absent slots must become zeros.
template <class Pages>
void expect_absent_values_zero(const Recipe& recipe) {
  using Traits = PrefillTraits<Pages>;
  const HeadLayout head = head_layout(recipe, tile_dim, tile_dim, 64, 0);
  const std::vector<std::byte> block(head.bytes(), std::byte{0xff});
  LayerView layer{};
  layer.heads[static_cast<int>(PageKind::Sealed)] = &head;
  for (const int held : {0, 1, 6, 15}) {
    TokenTile tile{};
    tile.block = block.data();
    tile.index = 2;
    tile.tokens = held;
    std::vector<std::byte> to(Traits::key_bytes + Traits::value_bytes, std::byte{0xff});
    test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
      stage_sealed_tile<Traits>(threads, layer, 0, tile, to.data(), to.data() + Traits::key_bytes);
    });
    int others = 0;
    for (int token = 0; token < tile_extent; ++token)
      for (int channel = 0; channel < tile_dim; ++channel)
        others += (staged(Role::Values, to.data() + Traits::key_bytes, token, channel).bits == 0) !=
                  (token >= held);
    EXPECT_EQ(others, 0) << to_string(recipe) << ", " << held << " tokens";
  }
}

TEST(PrefillTile, ValuesOfAbsentSlotsOfSealedPagesAreZero) {
  const auto recipe = [](const char* text) {
    return resolve_recipe(parse_recipe(text).value(), {1, tile_dim, tile_dim, 0}, 64).value();
  };
  expect_absent_values_zero<PageTraits<4, 2, tile_dim>>(recipe("k4v2"));
  expect_absent_values_zero<PageTraits<3, 8, tile_dim>>(recipe("k3v8"));
  expect_absent_values_zero<ChannelValueTraits<4, 2, tile_dim>>(recipe("k4v2c"));
  expect_absent_values_zero<HalfTraits<tile_dim>>(recipe("k16v16"));
  expect_absent_values_zero<GenericTraits<tile_dim>>(recipe("k4v2"));
  expect_absent_values_zero<GenericTraits<tile_dim>>(recipe("k16v16"));
}

}  // namespace
}  // namespace kvtilt::cuda
