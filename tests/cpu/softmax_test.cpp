// SPDX-License-Identifier: MIT
// softmax.inl, through the kernel table of every instruction set.
#include <kvtilt/cpu/kernels.hpp>

#include "support/fp16_oracle.hpp"
#include "support/kernel_tables.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt {
namespace {

using cpu::Kernels;
using cpu::LaneMask;
using cpu::lanes_between;
using cpu::Range;

/// What a slot without a token may hold: NaN, infinity, huge, tiny.
float garbage(test::Random& random) {
  const std::uint32_t patterns[] = {0x7fc00001u, 0xffffffffu, 0x7f800000u, 0xff800000u,
                                    0x7f7fffffu, 0xff7fffffu, 0x4f000000u, 0x42c80000u,
                                    0x00000001u, 0x7fa00000u};
  return std::bit_cast<float>(patterns[random.below(10)]);
}

struct Page {
  std::vector<float> scores;
  Range valid;
};

/// 16 to 160 slots, a range of which (sometimes empty) holds scores around `centre`.
Page random_page(test::Random& random, double centre, double spread) {
  Page page;
  const int slots = 16 * random.between(1, 10);
  page.valid.first = random.chance(2) ? 0 : random.below(slots);
  page.valid.last = random.chance(8) ? page.valid.first : random.between(page.valid.first, slots);
  for (int slot = 0; slot < slots; ++slot)
    page.scores.push_back(slot >= page.valid.first && slot < page.valid.last
                              ? static_cast<float>(centre + random.normal() * spread)
                              : garbage(random));
  return page;
}

/// Runs update_softmax() on five copies of a row: the four that are handled together and the one
/// alone must give the same bits. Returns the shrink factor.
float update_range(const Kernels& kernels, std::vector<float>& scores, Range valid, float& maximum,
                   float& sum) {
  constexpr int rows = cpu::row_tile + 1;
  const std::size_t slots = scores.size();
  std::vector<LaneMask> visible;
  std::vector<float> copies;
  for (int r = 0; r < rows; ++r) {
    copies.insert(copies.end(), scores.begin(), scores.end());
    for (int slot = 0; slot < static_cast<int>(slots); slot += line_lanes)
      visible.push_back(lanes_between(valid.first - slot, valid.last - slot));
  }
  const cpu::RunningSoftmax before{sum == 0.0f ? cpu::lowest_score : maximum, {sum}};
  cpu::RunningSoftmax running[rows];
  for (cpu::RunningSoftmax& row : running) row = before;
  float shrinks[rows];
  const bool rose = kernels.update_softmax(
      {copies.data(), static_cast<std::ptrdiff_t>(slots)}, rows, static_cast<int>(slots),
      {visible.data(), static_cast<std::ptrdiff_t>(slots) / line_lanes}, running, shrinks);
  EXPECT_EQ(rose, running[0].maximum > before.maximum);
  if (valid.first == 0 && valid.last == static_cast<int>(slots)) {  // masks may be left out
    cpu::RunningSoftmax alone = before;
    std::vector<float> unmasked = scores;
    float shrink = 0;
    (void)kernels.update_softmax({unmasked.data(), 0}, 1, static_cast<int>(slots), {nullptr, 0},
                                 &alone, &shrink);
    EXPECT_EQ(std::memcmp(unmasked.data(), copies.data(), slots * sizeof(float)), 0);
    EXPECT_EQ(alone.maximum, running[0].maximum);
    EXPECT_EQ(shrink, shrinks[0]);
  }
  SoftmaxState states[rows];
  for (int r = 0; r < rows; ++r) states[r] = running[r].state();
  for (int r = 1; r < rows; ++r) {
    EXPECT_EQ(std::memcmp(&copies[static_cast<std::size_t>(r) * slots], copies.data(),
                          slots * sizeof(float)),
              0);
    EXPECT_EQ(states[r].maximum, states[0].maximum);
#if defined(__FAST_MATH__)  // compilers may then add the lanes of one row in another order
    EXPECT_FLOAT_EQ(states[r].sum, states[0].sum);
#else
    EXPECT_EQ(states[r].sum, states[0].sum);
#endif
    EXPECT_EQ(shrinks[r], shrinks[0]);
  }
  std::copy_n(copies.begin(), slots, scores.begin());
  maximum = states[0].maximum;
  sum = states[0].sum;
  return shrinks[0];
}

/// The error bound of the kernel's 2^x: that of its polynomial plus the rounding of the difference.
double power_tolerance(double x) { return std::exp2(x) * (4e-7 + std::fabs(x) * 0x1p-24) + 1e-37; }

class UpdateSoftmaxAgreement : public testing::TestWithParam<test::KernelTable> {};

TEST_P(UpdateSoftmaxAgreement, AddsUpTheSoftmaxOfAllPages) {
  const Kernels& kernels = *GetParam().kernels;
  test::Random random(4);
  for (int round = 0; round < 1500; ++round) {
    const double spread = std::exp2(random.uniform(-4, 11));
    const double centre = random.chance(3) ? random.normal() * 1e4 : 0.0;
    double maximum = -1e300;
    double sum = 0;
    float got_maximum = 99.0f;  // without meaning while the sum is 0
    float got_sum = 0.0f;
    for (int pages = random.between(1, 6); pages > 0; --pages) {
      const Page page = random_page(random, centre, spread);
      double page_maximum = maximum;
      for (int slot = page.valid.first; slot < page.valid.last; ++slot)
        page_maximum = std::fmax(page_maximum,
                                 static_cast<double>(page.scores[static_cast<std::size_t>(slot)]));
      std::vector<float> scores = page.scores;
      const float shrink = update_range(kernels, scores, page.valid, got_maximum, got_sum);
      if (sum > 0) {
        const double factor = std::fmax(maximum - page_maximum, -126);
        ASSERT_NEAR(static_cast<double>(shrink), std::exp2(factor), power_tolerance(factor));
        sum *= std::exp2(factor);
      }
      maximum = page_maximum;
      for (int slot = 0; slot < static_cast<int>(scores.size()); ++slot) {
        const std::size_t at = static_cast<std::size_t>(slot);
        if (slot < page.valid.first || slot >= page.valid.last) {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(scores[at]), 0u) << "slot " << slot;
          continue;
        }
        const double x = std::fmax(static_cast<double>(page.scores[at]) - maximum, -126);
        ASSERT_TRUE(test::is_finite(scores[at]));
        ASSERT_NEAR(static_cast<double>(scores[at]), std::exp2(x), power_tolerance(x));
        sum += std::exp2(x);
      }
      if (sum > 0) {
        ASSERT_EQ(static_cast<double>(got_maximum), maximum);
      }
      ASSERT_NEAR(static_cast<double>(got_sum), sum, 6e-6 * sum);
    }
  }
}

TEST_P(UpdateSoftmaxAgreement, EmptyPagesChangeNothing) {
  const Kernels& kernels = *GetParam().kernels;
  test::Random random(5);
  for (const Range valid : {Range{0, 0}, {7, 7}, {9, 3}, {32, 32}}) {
    std::vector<float> scores(32);
    for (float& score : scores) score = garbage(random);
    float maximum = 3.0f;
    float sum = 2.0f;
    EXPECT_EQ(update_range(kernels, scores, valid, maximum, sum), 1.0f);
    EXPECT_EQ(maximum, 3.0f);
    EXPECT_EQ(sum, 2.0f);
    for (const float score : scores) EXPECT_EQ(std::bit_cast<std::uint32_t>(score), 0u);
  }
}

TEST_P(UpdateSoftmaxAgreement, FirstScoreOfAllIsTheMaximum) {
  // Even where that score is far below the maximum that the unused state happens to hold.
  const Kernels& kernels = *GetParam().kernels;
  std::vector<float> scores(16, 1.0e30f);
  scores[5] = -3.0e4f;
  float maximum = 1.0e20f;
  float sum = 0.0f;
  update_range(kernels, scores, {5, 6}, maximum, sum);
  EXPECT_EQ(maximum, -3.0e4f);
  EXPECT_EQ(sum, 1.0f);
  EXPECT_EQ(scores[5], 1.0f);
  EXPECT_EQ(scores[4], 0.0f);
}

TEST_P(UpdateSoftmaxAgreement, TakesHugeScores) {
  const Kernels& kernels = *GetParam().kernels;
  for (const float huge : {1.0e6f, 1.0e30f, 1.5e38f}) {
    std::vector<float> scores(16, -huge);
    scores[3] = huge;
    float maximum = 0.0f;
    float sum = 0.0f;
    update_range(kernels, scores, {0, 16}, maximum, sum);
    EXPECT_EQ(maximum, huge);
    EXPECT_EQ(sum, 1.0f);
    EXPECT_EQ(scores[3], 1.0f);
    EXPECT_LE(scores[0], 0x1p-126f);
    std::vector<float> lower(16, -huge);
    EXPECT_EQ(update_range(kernels, lower, {0, 16}, maximum, sum), 1.0f);
    EXPECT_EQ(maximum, huge);
    EXPECT_EQ(sum, 1.0f);
  }
  std::vector<float> scores(16, -1.0e30f);
  float maximum = 0.0f;
  float sum = 0.0f;
  update_range(kernels, scores, {0, 16}, maximum, sum);
  EXPECT_EQ(sum, 16.0f);
  std::vector<float> higher(16, 1.0e30f);
  EXPECT_LE(update_range(kernels, higher, {0, 16}, maximum, sum), 0x1p-126f);
  EXPECT_EQ(sum, 16.0f);
  EXPECT_EQ(maximum, 1.0e30f);
}

/// Differences from 0 to -126 in small steps: the polynomial's whole range and every exponent.
TEST_P(UpdateSoftmaxAgreement, PowersAreWithinTheStatedError) {
  const Kernels& kernels = *GetParam().kernels;
  for (int base = 0; base > -126; --base)
    for (int part = 0; part < 256; part += 15) {
      std::vector<float> scores(16, 0.0f);
      for (int i = 1; i < 16; ++i)
        scores[static_cast<std::size_t>(i)] =
            static_cast<float>(base) - static_cast<float>(part + i) / 256.0f;
      const std::vector<float> differences = scores;
      float maximum = 0.0f;
      float sum = 0.0f;
      update_range(kernels, scores, {0, 16}, maximum, sum);
      for (std::size_t i = 0; i < 16; ++i) {
        const double exact = std::exp2(static_cast<double>(differences[i]));
        if (differences[i] < -126.0f) continue;
        ASSERT_NEAR(static_cast<double>(scores[i]), exact, 3e-7 * exact) << differences[i];
      }
    }
}

TEST_P(UpdateSoftmaxAgreement, ScaleMultipliesEveryValue) {
  const Kernels& kernels = *GetParam().kernels;
  for (int count = 1; count <= 64; ++count) {
    std::vector<float> values(80);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
    kernels.scale(values.data(), count, 0.25f);
    for (int i = 0; i < count; ++i)
      ASSERT_EQ(values[static_cast<std::size_t>(i)], static_cast<float>(i) * 0.25f);
    for (std::size_t i = static_cast<std::size_t>((count + 15) / 16 * 16); i < values.size(); ++i)
      ASSERT_EQ(values[i], static_cast<float>(i)) << "of " << count;
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, UpdateSoftmaxAgreement, testing::ValuesIn(test::kernel_tables()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kvtilt
