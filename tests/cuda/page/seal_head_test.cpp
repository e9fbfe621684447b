// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/seal_head.hpp>

#include "support/emulated_threads.hpp"
#include "support/sealed_head.hpp"

#include <gtest/gtest.h>

#include <cstdint>

namespace kvtilt::test {
namespace {

using cuda::FitRules;

/// Seals a block of hostile data in the emulator; all bytes must equal the specification's.
template <FitRules Rules = FitRules::All>
void expect_sealed(const Recipe& recipe, int key_dim, int value_dim, int tokens, int threads,
                   std::uint64_t seed) {
  SealedHead head(recipe, key_dim, value_dim, tokens, seed);
  ASSERT_TRUE(
      emulate(1, threads, cuda::seal_shared_bytes(head.packed), [&](EmulatedThreads& block) {
        cuda::seal_head<Rules>(block, head.keys(), head.values(), head.packed, head.sealed.data(),
                               block.shared());
      }));
  head.expect_equal();
}

class SealHead : public testing::TestWithParam<int> {};

TEST_P(SealHead, GivesTheBytesOfTheSpecification) {
  const int bits = GetParam();
  std::uint64_t seed = static_cast<std::uint64_t>(bits) * 1000;
  for_each_sealed_format(bits, [&](const Format& format, int dim, int tokens) {
    expect_sealed({format, format}, dim, dim, tokens, 128, ++seed);
    if (!format.quantized() || format.rule == RangeRule::MinMax)
      expect_sealed<FitRules::MinMax>({format, format}, dim, dim, tokens, 128, ++seed);
  });
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

}  // namespace
}  // namespace kvtilt::test
