// SPDX-License-Identifier: MIT
#include <kvtilt/core/attend_options.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using testing::HasSubstr;

constexpr LayerShape windowed{2, 64, 64, 50};

/// The check for two queries of four heads each.
Status checked(const AttendOptions& options, const LayerShape& shape = windowed) {
  return check_attend_options(options, shape, 2, 4);
}

void expect_refused(const AttendOptions& options, const char* words) {
  const Status status = checked(options);
  EXPECT_EQ(status.code(), ErrorCode::InvalidArgument) << words;
  EXPECT_THAT(std::string(status.message()), HasSubstr(words));
}

TEST(AttendOptions, DefaultsAndLimitsAreAccepted) {
  const std::vector<float> slopes = {-1e30f, 0.0f, 0.5f, 1e30f};
  const std::vector<float> sinks = {-1e30f, 1e30f, bit_cast<float>(minus_infinity_bits), 0.0f};
  const std::vector<std::uint64_t> pair = {1, 3};
  const std::vector<std::uint64_t> large = {~std::uint64_t{0}, 0};
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const AttendOptions& options :
       std::vector<AttendOptions>{{},
                                  {.scale = 1e30f, .soft_cap = 1e30f},
                                  {.window = 50},
                                  {.alibi_slopes = slopes, .sink_logits = sinks},
                                  {.tree_mask = pair},
                                  {.tree_mask = pair, .tree_tokens = 2},
                                  {.tree_mask = large, .tree_tokens = most_tree_tokens},
                                  {.first_position = 7, .end_position = 7},
                                  {.first_position = most, .end_position = most},
                                  {.causal = false}})
    EXPECT_TRUE(checked(options).ok()) << checked(options).message();
  EXPECT_TRUE(checked({.window = 1 << 30}, {2, 64, 64}).ok()) << "the layer has no window";
}

TEST(AttendOptionsHostile, FactorsThatAreNoPositiveNumberAreRefused) {
  for (const std::uint32_t bits : {0x80000000u, 0x80000001u, 0xbf800000u, 0x7149f2cbu, 0x7f800000u,
                                   0xff800000u, 0x7fc00000u, 0xffc00000u}) {
    expect_refused({.scale = bit_cast<float>(bits)}, "scale is ");
    expect_refused({.soft_cap = bit_cast<float>(bits)}, "soft_cap is ");
  }
  for (const std::uint32_t bits :
       {0x7149f2cbu, 0xf149f2cbu, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00000u}) {
    const std::vector<float> numbers = {0.0f, 0.0f, bit_cast<float>(bits), 0.0f};
    expect_refused({.alibi_slopes = numbers}, "the ALiBi slope of head 2 is ");
    if (bits != minus_infinity_bits)
      expect_refused({.sink_logits = numbers}, "the sink logit of head 2 is ");
  }
}

TEST(AttendOptionsHostile, ArithmeticThatIsNoneIsRefused) {
  expect_refused({.arithmetic = static_cast<Arithmetic>(2)},
                 "arithmetic is 2, must be Fast or Exact");
  EXPECT_TRUE(checked({.arithmetic = Arithmetic::Exact}).ok());
}

TEST(AttendOptionsHostile, WhatContradictsIsRefused) {
  const std::vector<float> three(3, 0.0f);
  const std::vector<std::uint64_t> one(1, 1);
  const std::vector<std::uint64_t> pair = {1, 3};
  const std::vector<std::uint64_t> beyond = {1, 7};
  expect_refused({.window = -1}, "window is -1");
  expect_refused({.window = 51}, "window 51 is wider than the layer's 50");
  expect_refused({.alibi_slopes = three}, "3 ALiBi slopes for 4 query heads");
  expect_refused({.sink_logits = three}, "3 sink logits for 4 query heads");
  expect_refused({.tree_mask = one}, "the tree mask has 1 words for 2 queries");
  expect_refused({.tree_tokens = 2}, "2 tree_tokens for 2 queries without a tree mask");
  expect_refused({.tree_mask = pair, .tree_tokens = 1}, "1 tree_tokens for 2 queries under");
  expect_refused({.tree_mask = pair, .tree_tokens = 65}, "at most 64 tokens");
  expect_refused({.tree_mask = beyond}, "query 1 has bit 2 in the tree mask, but the tree has 2");
  expect_refused({.tree_mask = pair, .causal = false}, "causal = false cannot say it");
  expect_refused({.first_position = -1}, "positions -1 to ");
  expect_refused({.first_position = 8, .end_position = 7}, "positions 8 to 7 are not a range");
  const std::vector<std::uint64_t> many(65, 0);
  EXPECT_THAT(
      std::string(check_attend_options({.tree_mask = many}, windowed, 65, 4).message()),
      HasSubstr("the tree mask has 65 words for 65 queries; one each is needed, for at most 64"));
}

}  // namespace
}  // namespace kvtilt
