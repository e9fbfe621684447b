// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/mixed_pages.hpp>
#include <kvtilt/quant/recipe.hpp>

#include "support/device_attention.hpp"
#include "support/device_prefill.hpp"
#include "support/random_input.hpp"

#include <gtest/gtest.h>

namespace kvtilt::test {
namespace {

using cuda::ChannelValueTraits;
using cuda::MixedTraits;
using cuda::PageTraits;
using cuda::TokenKeyTraits;

using Mixed = MixedTraits<PageTraits<4, 2, 64>, PageTraits<8, 4, 64>, PageTraits<3, 2, 64>,
                          TokenKeyTraits<4, 4, 64>, ChannelValueTraits<4, 2, 64>>;

const Recipe k4tv4 = parse_recipe("k4tv4").value();
const Recipe k4v2c = parse_recipe("k4v2c").value();

HeadLayout mixed_layout(const Recipe& recipe) {
  const LayerShape shape{1, 64, 64, 0};
  return head_layout(resolve_recipe(recipe, shape, 64).value(), 64, 64, 64, 0);
}

TEST(MixedPages, TellHeadsApart) {
  EXPECT_EQ(Mixed::kind_of(mixed_layout(presets::k4v2)), 0);
  EXPECT_EQ(Mixed::kind_of(mixed_layout(presets::k8v4)), 1);
  EXPECT_EQ(Mixed::kind_of(mixed_layout(presets::k3v2)), 2);
  EXPECT_EQ(Mixed::kind_of(mixed_layout(k4tv4)), 3);
  EXPECT_EQ(Mixed::kind_of(mixed_layout(k4v2c)), 4);
  EXPECT_EQ(Mixed::bytes_of(0), (PageTraits<4, 2, 64>::unit_bytes));
  EXPECT_EQ(Mixed::bytes_of(1), (PageTraits<8, 4, 64>::unit_bytes));
  EXPECT_EQ(Mixed::bytes_of(2), (PageTraits<3, 2, 64>::unit_bytes));
  EXPECT_GE(Mixed::stage_bytes, Mixed::bytes_of(1));
}

TEST(MixedPages, HeadsWithRecipesOfTheirOwnAreCloseToFloat64) {
  Random random(1);
  const LayerShape shape{4, 64, 64, 0};
  const DeviceSequences sequences(random, shape, {presets::k8v4, k4tv4, k4v2c, presets::k3v2},
                                  {700, 3, 0, 170});
  const DeviceLayer device = sequences.device();
  for (const int gqa_ratio : {1, 3, 12}) {
    const Rows<float> queries = random_queries(random, shape, 4, gqa_ratio);
    for (const int blocks : {1, 3, 40}) {
      const Output output = emulated_attend<Mixed>(device, queries, {}, {blocks, 2, 2, {}});
      EXPECT_TRUE(is_close(sequences.views, queries, {}, output)) << gqa_ratio << " " << blocks;
    }
  }
}

TEST(MixedPages, GiveTheBitsOfAKernelForOneRecipe) {
  Random random(2);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, presets::k3v2, {500, 90});
  const DeviceLayer device = sequences.device();
  const Rows<float> queries = random_queries(random, shape, 2, 4);
  const Output one = emulated_attend<PageTraits<3, 2, 64>>(device, queries, {});
  const Output mixed = emulated_attend<Mixed>(device, queries, {});
  EXPECT_EQ(one.out.data, mixed.out.data);
  EXPECT_EQ(one.lse, mixed.lse);
}

TEST(MixedPages, ChunksTakeThemOneByOne) {
  Random random(3);
  const LayerShape shape{2, 64, 64, 0};
  const DeviceSequences sequences(random, shape, {presets::k8v4, presets::k3v2}, {300, 0});
  const Chunks chunks(random, shape, {30, 17}, 2);
  const Output output = emulated_prefill<Mixed>(sequences.device(), chunks, {}, {});
  EXPECT_TRUE(is_close(sequences.views, chunks, {}, output));
}

}  // namespace
}  // namespace kvtilt::test
