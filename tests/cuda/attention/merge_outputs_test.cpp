// SPDX-License-Identifier: MIT
#include <kvtilt/attention/merge.hpp>
#include <kvtilt/cuda/attention/merge_outputs.hpp>

#include "support/emulated_threads.hpp"
#include "support/rows.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::EmulatedThreads;
using test::Random;
using test::random_rows;
using test::Rows;
using ::testing::HasSubstr;

constexpr float nothing = -std::numeric_limits<float>::infinity();

struct Part {
  Rows<float> out;
  std::vector<float> lse;

  Part(Random& random, int tokens, int heads, int dim)
      : out(random_rows(random, tokens, heads, dim)) {
    for (int i = 0; i < tokens * heads; ++i)
      lse.push_back(random.chance(5) ? nothing : static_cast<float>(random.normal()) * 9);
  }
};

TEST(MergeOutputsAgreement, RowsAreWhatTheCpuMakesOfThem) {
  Random random(1);
  for (const int dim : {8, 80, 128})
    for (const int blocks : {1, 3}) {
      Part into(random, 7, 3, dim);
      const Part part(random, 7, 3, dim);
      for (std::size_t i = 0; i < into.lse.size(); ++i)  // outputs of empty parts must not be read
        for (int c = 0; c < dim && into.lse[i] == nothing; ++c)
          into.out.data[i * static_cast<std::size_t>(dim) + static_cast<std::size_t>(c)] =
              std::nanf("");
      Part expected = into;
      Part copy = part;
      EXPECT_TRUE(kvtilt::merge({expected.out.data.data(), 7, 3, dim, expected.lse.data()},
                                {copy.out.data.data(), 7, 3, dim, copy.lse.data()})
                      .ok());
      const MergeArguments arguments{into.out.out(), into.lse.data(), part.out.view(),
                                     part.lse.data()};
      EXPECT_TRUE(check_merge(arguments).ok());
      test::emulate(blocks, 64, 0,
                    [&](EmulatedThreads& threads) { merge_outputs(threads, arguments); });
      for (std::size_t i = 0; i < into.lse.size(); ++i) {
        if (expected.lse[i] == nothing) {
          EXPECT_EQ(into.lse[i], nothing);
          continue;
        }
        EXPECT_NEAR(into.lse[i], expected.lse[i], 1e-5);
        for (int c = 0; c < dim; ++c) {
          const std::size_t at = i * static_cast<std::size_t>(dim) + static_cast<std::size_t>(c);
          EXPECT_NEAR(into.out.data[at], expected.out.data[at], 1e-5);
        }
      }
    }
}

TEST(MergeOutputs, TypesAndStridesAreTheTensorsOwn) {
  Random random(2);
  const Rows<float> out = random_rows(random, 4, 2, 16);
  Rows<F16> into = test::converted<F16>(out, [](float x) { return to_f16(x); });
  const Rows<BF16> part =
      test::converted<BF16>(random_rows(random, 4, 2, 32), [](float x) { return to_bf16(x); });
  std::vector<float> lse(8, 1.0f);
  const std::vector<float> part_lse(8, 1.0f);
  TensorView view = TensorView(part.data.data(), 4, 2, 16).with_strides(64, 32);
  test::emulate(2, 32, 0, [&](EmulatedThreads& threads) {
    merge_outputs(threads, MergeArguments{into.out(), lse.data(), view, part_lse.data()});
  });
  for (int token = 0; token < 4; ++token)
    for (int head = 0; head < 2; ++head)
      for (int c = 0; c < 16; ++c)
        EXPECT_NEAR(
            to_float(into.at(token, head, c)),
            (to_float(to_f16(out.at(token, head, c))) + to_float(part.at(token, head, c))) / 2,
            2e-3);
  for (const float x : lse) EXPECT_NEAR(x, 1.0f + std::log(2.0f), 1e-5);
}

TEST(MergeOutputsHostile, PartsMustFitAndBeThere) {
  float numbers[8] = {};
  const MutableTensorView into(numbers, 1, 2, 4);
  const auto check = [&](const MutableTensorView& a, float* lse, const TensorView& b,
                         const float* other) {
    return check_merge({a, lse, b, other});
  };
  EXPECT_TRUE(check(into, numbers, into, numbers).ok());
  EXPECT_TRUE(check({}, nullptr, {}, nullptr).ok()) << "nothing to merge";
  EXPECT_THAT(check(into, numbers, TensorView(numbers, 2, 1, 4), numbers).message(),
              HasSubstr("cannot merge [2, 1, 4] into [1, 2, 4]"));
  EXPECT_THAT(check(into, nullptr, into, numbers).message(),
              HasSubstr("carry their output and lse"));
  EXPECT_FALSE(check(into, numbers, into, nullptr).ok());
  const MutableTensorView none(static_cast<float*>(nullptr), 1, 2, 4);
  EXPECT_FALSE(check(none, numbers, into, numbers).ok());
  EXPECT_FALSE(check(into, numbers, none, numbers).ok());
  MutableTensorView negative = into;
  negative.tokens = -1;
  EXPECT_FALSE(check(negative, numbers, negative, numbers).ok());
  MutableTensorView of_seven = into;
  of_seven.type = static_cast<ElementType>(7);
  EXPECT_THAT(check(of_seven, numbers, into, numbers).message(), HasSubstr("element type 7"));
  EXPECT_THAT(check(into, numbers, of_seven, numbers).message(), HasSubstr("element type 7"));
}

}  // namespace
}  // namespace kvtilt::cuda
