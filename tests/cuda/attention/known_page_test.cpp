// SPDX-License-Identifier: MIT
// Compares with the fragments of generic_page.hpp, which are tested against a scalar decoder.
#include <kvtilt/cuda/attention/generic_page.hpp>
#include <kvtilt/cuda/attention/known_page.hpp>

#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::Random;

/// A block of random codes, scales and minima, all finite.
template <class Pages>
std::vector<std::byte> random_block(Random& random, const HeadLayout& head) {
  std::vector<std::byte> block(head.bytes());
  for (std::byte& byte : block) byte = static_cast<std::byte>(random.below(256));
  for (const TensorLayout* tensor : {&head.key, &head.value})
    for (int band = 0; band < tensor->bands(); ++band)
      for (int i = 0; i < 2 * tensor->pitch(); ++i)
        tensor->scales(block.data(), band)[i].bits = static_cast<std::uint16_t>(
            random.below(0x7c00) | (i >= tensor->pitch() ? random.below(2) << 15 : 0));
  return block;
}

template <Role role, class Pages>
int differences(const HeadLayout& head, const std::byte* block, int tile) {
  using Known = KnownFragments<role, Pages>;
  static_assert(Known::supported);
  constexpr bool keys = role == Role::Keys;
  constexpr int dim = keys ? Pages::key_dim : Pages::value_dim;
  constexpr int count = dim / tile_extent;
  const PageFragments<role, dim, Known::ahead> generic{keys ? &head.key : &head.value, block, tile};
  int wrong = 0;
  for (int lane = 0; lane < warp_lanes; ++lane)
    for (int first = 0; first < count; first += Known::ahead) {
      Words expected[Known::ahead];
      Words got[Known::ahead];
      generic.load(lane, first, count, expected);
      Known(block, tile, lane).load(lane, first, count, got);
      for (int i = 0; i < Known::ahead && first + i < count; ++i)
        for (int reg = 0; reg < 4; ++reg) wrong += got[i].word[reg] != expected[i].word[reg];
    }
  return wrong;
}

template <class Pages>
void expect_same() {
  Random random(Pages::key_bits * 10 + Pages::value_bits);
  const HeadLayout head = Pages::layout();
  const std::vector<std::byte> block = random_block<Pages>(random, head);
  for (int tile = 0; tile < Pages::page_tokens / tile_extent; ++tile) {
    EXPECT_EQ((differences<Role::Keys, Pages>(head, block.data(), tile)), 0)
        << "keys, " << Pages::key_bits << " bits, tile " << tile;
    EXPECT_EQ((differences<Role::Values, Pages>(head, block.data(), tile)), 0)
        << "values, " << Pages::value_bits << " bits, tile " << tile;
  }
}

TEST(KnownPageAgreement, EveryWidthDecodesLikeTheGenericPage) {
  expect_same<PageTraits<8, 8, 128>>();
  expect_same<PageTraits<4, 2, 128>>();
  expect_same<PageTraits<2, 4, 128>>();
  expect_same<PageTraits<1, 1, 128>>();
  expect_same<PageTraits<3, 6, 128>>();
  expect_same<PageTraits<5, 7, 128>>();
  expect_same<PageTraits<7, 5, 128>>();
  expect_same<PageTraits<6, 3, 128>>();
}

TEST(KnownPageAgreement, EveryShapeDecodesLikeTheGenericPage) {
  expect_same<PageTraits<4, 2, 64>>();
  expect_same<PageTraits<4, 2, 192, 128>>();
  expect_same<PageTraits<2, 2, 256>>();
  expect_same<PageTraits<4, 2, 96>>();
  expect_same<PageTraits<2, 4, 96>>();
  expect_same<PageTraits<8, 6, 96>>();
  expect_same<PageTraits<8, 8, 96>>();
  expect_same<PageTraits<4, 2, 192>>();  // the last group of values is shorter
  expect_same<PageTraits<4, 4, 64, 64, 32>>();
  expect_same<PageTraits<8, 2, 64, 64, 128>>();
  expect_same<PageTraits<4, 4, 64, 64, 64, 32, 32>>();
  expect_same<PageTraits<2, 8, 128, 128, 128, 16, 16>>();
  expect_same<PageTraits<3, 5, 64, 128, 128, 64, 64>>();
}

// One-bit runs of two tiles fill only half a word.
static_assert(!KnownFragments<Role::Values, PageTraits<4, 1, 96>>::supported);

TEST(KnownPageAgreement, KeysPerTokenAndValuesPerChannelDecodeLikeTheGenericPage) {
  expect_same<TokenKeyTraits<8, 8, 128>>();
  expect_same<TokenKeyTraits<4, 2, 128, 128, 64, 32, 32>>();
  expect_same<TokenKeyTraits<3, 1, 64, 64, 128, 16>>();
  expect_same<ChannelValueTraits<4, 2, 128>>();
  expect_same<ChannelValueTraits<8, 7, 64, 128, 64, 64, 32>>();
  expect_same<ChannelValueTraits<4, 4, 64, 64, 32, 16, 16>>();
}

}  // namespace
}  // namespace kvtilt::cuda
