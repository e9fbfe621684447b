// SPDX-License-Identifier: MIT
#include <kvtilt/cache/options.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace kvtilt {
namespace {

using testing::HasSubstr;

CacheOptions with(int CacheOptions::*member, int value) {
  CacheOptions options;
  options.*member = value;
  return options;
}

TEST(CacheOptions, KeepTheFirst4AndTheNewest128TokensIn16Bits) {
  EXPECT_EQ(CacheOptions{}.page_tokens, 64);
  EXPECT_EQ(CacheOptions{}.sink_tokens, 4);
  EXPECT_EQ(CacheOptions{}.recent_tokens, 128);
}

TEST(CacheOptions, DefaultsAndLimitsAreAccepted) {
  EXPECT_TRUE(check_options({}).ok());
  for (const int page : {32, 64, 128})
    EXPECT_TRUE(check_options(with(&CacheOptions::page_tokens, page)).ok());
  for (const int sinks : {0, 1, 1024})
    EXPECT_TRUE(check_options(with(&CacheOptions::sink_tokens, sinks)).ok());
  for (const int recent : {0, 1, 65536})
    EXPECT_TRUE(check_options(with(&CacheOptions::recent_tokens, recent)).ok());
  for (const int sequences : {1, 1 << 20})
    EXPECT_TRUE(check_options(with(&CacheOptions::max_sequences, sequences)).ok());
}

TEST(CacheOptionsHostile, NumbersOutOfRangeAreNamed) {
  const auto refuses = [](int CacheOptions::*member, const char* name, int value) {
    const Status status = check_options(with(member, value));
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument) << name << " " << value;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
    EXPECT_THAT(std::string(status.message()), HasSubstr("is " + std::to_string(value)));
    EXPECT_THAT(std::string(status.message()), HasSubstr("must be"));
  };
  for (const int page : {-64, 0, 1, 16, 31, 33, 63, 65, 96, 256})
    refuses(&CacheOptions::page_tokens, "page_tokens", page);
  for (const int sinks : {-1, 1025, -2147483647 - 1})
    refuses(&CacheOptions::sink_tokens, "sink_tokens", sinks);
  for (const int recent : {-1, 65537, 2147483647})
    refuses(&CacheOptions::recent_tokens, "recent_tokens", recent);
  for (const int sequences : {-1, 0, (1 << 20) + 1})
    refuses(&CacheOptions::max_sequences, "max_sequences", sequences);
}

TEST(CacheOptionsSupports, EveryPairOfWidthsUnlessTheListIsShorter) {
  const LayerShape shape{2, 128, 128, 0};
  for (const int key : {1, 2, 3, 4, 5, 6, 7, 8, 16})
    for (const int value : {1, 2, 3, 4, 5, 6, 7, 8, 16})
      EXPECT_TRUE(supports(shape, presets::per_channel_keys(key, value)).ok());

  using Few = Formats<Keys<4, 8>, Values<2>>;
  EXPECT_TRUE(supports<Few>(shape, presets::k4v2).ok());
  EXPECT_TRUE(supports<Few>(shape, presets::k16v16).ok());
  const Status keys = supports<Few>(shape, presets::k2v2);
  EXPECT_EQ(keys.code(), ErrorCode::Unsupported);
  EXPECT_THAT(std::string(keys.message()), HasSubstr("keys of 2 bits"));
  const Status values = supports<Few>(shape, presets::k8v8);
  EXPECT_EQ(values.code(), ErrorCode::Unsupported);
  EXPECT_THAT(std::string(values.message()), HasSubstr("values of 8 bits"));
}

TEST(CacheOptionsSupportsHostile, WhatCannotBeIsRefusedWithTheNumbers) {
  const auto refuses = [](const LayerShape& shape, const Recipe& recipe, int page,
                          const char* words) {
    const Status status = supports(shape, recipe, page);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument) << words;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  };
  for (const int dim : {72, 80, 576, 8})
    EXPECT_TRUE(supports(LayerShape{1, dim, dim, 0}, presets::k4v2).ok()) << dim;
  refuses({1, 12, 12, 0}, presets::k4v2, 64, "key 12, value 12");
  refuses({1, 584, 64, 0}, presets::k4v2, 64, "key 584, value 64");
  refuses({1, 64, 584, 0}, presets::k4v2, 64, "key 64, value 584");
  refuses({1, 0, 64, 0}, presets::k4v2, 64, "multiples of 8");
  refuses({1, -8, 64, 0}, presets::k4v2, 64, "key -8");
  refuses({-1, 64, 64, 0}, presets::k4v2, 64, "kv_heads is -1");
  refuses({1025, 64, 64, 0}, presets::k4v2, 64, "kv_heads is 1025");
  refuses({1, 64, 64, -5}, presets::k4v2, 64, "window is -5");
  refuses({1, 64, 64, 0}, presets::k4v2, 48, "page_tokens is 48");
  refuses({1, 64, 64, 0}, {Format{9, Granularity::PerChannel, 0, RangeRule::MinMax}, {}}, 64,
          "9 bits");
  refuses({1, 64, 64, 0}, {key_format(4, Granularity::PerChannel, 48), {}}, 64, "group 48");
  refuses({1, 64, 64, 0}, {{}, value_format(4, Granularity::PerToken, 24)}, 64, "group 24");
  EXPECT_EQ(supports(LayerShape{8, 124, 128, 0}, presets::k4v2).message(),
            "head dimensions are key 124, value 128; both must be multiples of 8 from 8 to 576")
      << "names no layer, as the caller named none";
}

}  // namespace
}  // namespace kvtilt
