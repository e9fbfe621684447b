// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/seal_head.hpp>

#include "support/device_pages.hpp"
#include "support/emulated_threads.hpp"
#include "support/page_data.hpp"

#include <gtest/gtest.h>

#include <string>

namespace kvtilt::test {
namespace {

/// Seals a block of hostile data in the emulator and compares all bytes with the specification's.
void expect_sealed(const Recipe& recipe, int key_dim, int value_dim, int tokens, int threads,
                   std::uint64_t seed, int slices = 1) {
  const HeadLayout half = head_layout({}, key_dim, value_dim, tokens, 0);
  const HeadLayout packed = head_layout(recipe, key_dim, value_dim, tokens, 0);
  Random random(seed);
  Block from(half.bytes());
  fill_half_tensor(random, half.key, packed.key, from.data());
  fill_half_tensor(random, half.value, packed.value, from.data());
  Block page(packed.bytes());
  pack_by_specification(half.key, from.data(), packed.key, page.data());
  pack_by_specification(half.value, from.data(), packed.value, page.data());
  Block device_from(half.bytes());
  to_fragment_order(half, from.data(), device_from.data());
  Block expected(packed.bytes());
  to_fragment_order(packed, page.data(), expected.data());

  Block sealed(packed.bytes(), 0xee);
  ASSERT_TRUE(
      emulate(slices, threads, cuda::seal_shared_bytes(packed), [&](EmulatedThreads& block) {
        cuda::seal_head(block, device_from.data() + half.key.codes,
                        device_from.data() + half.value.codes, packed, sealed.data(),
                        block.shared(), block.block(), slices);
      }));
  EXPECT_EQ(first_difference(sealed, expected), -1)
      << to_string(recipe.key, {key_dim, tokens}) << "; "
      << to_string(recipe.value, {value_dim, tokens}) << "; codes of values at "
      << packed.value.codes << ", metadata at " << packed.key.metadata << " and "
      << packed.value.metadata;
  EXPECT_TRUE(sealed.guards_are_whole());
}

struct Case {
  int dim;
  int tokens;
};

class SealHead : public testing::TestWithParam<int> {};

TEST_P(SealHead, GivesTheBytesOfTheSpecification) {
  const int bits = GetParam();
  std::uint64_t seed = static_cast<std::uint64_t>(bits) * 1000;
  for (const Case& extents :
       {Case{64, 64}, {80, 64}, {96, 32}, {112, 128}, {128, 64}, {192, 32}, {256, 64}}) {
    for (const Format& format : formats_of(bits, {extents.dim, extents.tokens})) {
      const HeadLayout head =
          head_layout({format, format}, extents.dim, extents.dim, extents.tokens, 0);
      if (!cuda::supports_order(head.key.matrix, bits)) continue;
      expect_sealed({format, format}, extents.dim, extents.dim, extents.tokens, 128, ++seed);
      if (testing::Test::HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Bits, SealHead, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 16),
                         testing::PrintToStringParamName());

TEST(SealHeadShapes, KeysAndValuesDiffer) {
  const Recipe recipe{{4, Granularity::PerChannel, 64, RangeRule::MinMse},
                      {2, Granularity::PerToken, 128, RangeRule::MinMse}};
  for (const int threads : {32, 96, 128, 256}) expect_sealed(recipe, 192, 128, 64, threads, 7);
  expect_sealed({{3, Granularity::PerToken, 64, RangeRule::MinMax}, {}}, 576, 512, 32, 128, 8);
  expect_sealed({{}, {5, Granularity::PerChannel, 16, RangeRule::MinMse}}, 64, 128, 64, 128, 9);
}

TEST(SealHeadShapes, SlicesTogetherGiveTheBytes) {
  std::uint64_t seed = 20000;
  for (const int bits : {1, 2, 3, 4, 16})
    for (const Case& extents : {Case{64, 64}, {80, 64}, {112, 128}, {128, 64}, {192, 32}})
      for (const Format& format : formats_of(bits, {extents.dim, extents.tokens}))
        for (const int slices : {2, 4, 7}) {
          const HeadLayout head =
              head_layout({format, format}, extents.dim, extents.dim, extents.tokens, 0);
          if (!cuda::supports_order(head.key.matrix, bits)) continue;
          expect_sealed({format, format}, extents.dim, extents.dim, extents.tokens, 128, ++seed,
                        slices);
          if (testing::Test::HasFailure()) return;
        }
}

}  // namespace
}  // namespace kvtilt::test
