// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/seal_slice.hpp>
#include <kvtilt/quant/recipe.hpp>

#include "support/emulated_threads.hpp"
#include "support/sealed_head.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

namespace kvtilt::test {
namespace {

/// Seals with one block of threads per slice; the blocks run in `order`.
void expect_sliced(const Recipe& recipe, int key_dim, int value_dim, int tokens, int slices,
                   std::uint64_t seed, int threads = 128, LaunchOrder order = {}) {
  SealedHead head(recipe, key_dim, value_dim, tokens, seed);
  const cuda::HeadSlices plan(head.packed);
  const auto body = [&](EmulatedThreads& block) {
    if (block.warp() == 0) cuda::prepare_slice(block, plan, block.shared(), block.block(), slices);
    block.sync();
    cuda::detail::SliceFit fit;
    cuda::begin_slice(block, head.keys(), head.values(), block.shared(), fit);
    cuda::seal_slice(block, head.keys(), head.values(), head.sealed.data(), block.shared(), fit);
  };
  ASSERT_TRUE(emulate(slices, threads, cuda::slice_shared_bytes(head.packed), body, order));
  head.expect_equal();
}

class SealSlice : public testing::TestWithParam<int> {};

TEST_P(SealSlice, SlicesTogetherGiveTheBytesOfTheSpecification) {
  const int bits = GetParam();
  std::uint64_t seed = static_cast<std::uint64_t>(bits) * 1000;
  for_each_sealed_format(bits, [&](const Format& format, int dim, int tokens) {
    const int slices = 1 << seed % 6;
    expect_sliced({format, format}, dim, dim, tokens, slices, ++seed);
  });
}

INSTANTIATE_TEST_SUITE_P(Bits, SealSlice, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 16),
                         testing::PrintToStringParamName());

TEST(SealSliceShapes, AnyNumberOfSlicesInAnyOrder) {
  const Format per_token{3, Granularity::PerToken, 64, RangeRule::MinMse};
  const Format narrow{5, Granularity::PerChannel, 16, RangeRule::MinMse};
  for (const int slices : {1, 2, 4, 8, 16, 32}) {
    const auto seed = static_cast<std::uint64_t>(20000 + slices);
    const LaunchOrder order{slices < 8 ? LaunchOrder::Backward : LaunchOrder::Shuffled, 5};
    expect_sliced(*resolve_recipe(presets::k4v2, {1, 128, 128}, 64), 128, 128, 64, slices, seed,
                  128, order);
    expect_sliced({per_token, narrow}, 192, 128, 64, slices, seed, 128, order);
    expect_sliced({narrow, {}}, 64, 512, 32, slices, seed, 96, order);
    expect_sliced({{}, per_token}, 576, 64, 128, slices, seed, 256, order);
    if (testing::Test::HasFailure()) return;
  }
}

/// The slices of a head with the largest tensors.
TEST(SealSliceShapes, TheLargestHead) {
  const Format narrow{2, Granularity::PerChannel, 16, RangeRule::MinMse};
  const Format across{4, Granularity::PerToken, 16, RangeRule::MinMax};
  expect_sliced({across, narrow}, 576, 576, 128, 32, 1);
  expect_sliced({narrow, across}, 576, 576, 128, 32, 2);
}

cuda::HeadSlices slice_of(const HeadLayout& head, int slice, int slices) {
  cuda::HeadSlices plan(head);
  for (const int tensor : {0, 1})
    cuda::take_slice(tensor, reinterpret_cast<std::byte*>(&plan), slice, slices, 128);
  return plan;
}

TEST(SealSliceShapes, AThreadHasEightElementsOfAFineSlice) {
  const HeadLayout head =
      head_layout(*resolve_recipe(presets::k4v2, {1, 128, 128}, 64), 128, 128, 64, 0);
  for (int slice = 0; slice < 16; ++slice) {
    const cuda::HeadSlices plan = slice_of(head, slice, 16);
    const cuda::SliceTensor& own = plan.tensors[slice < 8 ? 0 : 1];
    EXPECT_EQ(plan.tensors[slice < 8 ? 1 : 0].own_units, 0) << slice;
    EXPECT_EQ(own.rounds, 1) << slice;
    EXPECT_EQ(own.own_groups << own.lane_bits, 128) << slice;
    EXPECT_EQ(2 * own.map.group_tiles.value, 1 << own.lane_bits) << slice;
  }
}

TEST(SealSliceShapes, PowersOfTwo) {
  for (int bits = 0; bits < 20; ++bits) EXPECT_EQ(cuda::bits_below(1 << bits), bits);
}

}  // namespace
}  // namespace kvtilt::test
