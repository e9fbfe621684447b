// SPDX-License-Identifier: MIT
#include <kvtilt/io/format_name.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace kvtilt {
namespace {

using testing::HasSubstr;

TEST(FormatName, SaysEveryField) {
  EXPECT_EQ(to_string(Format{}), "16");
  EXPECT_EQ(to_string(key_format(4)), "4c:min-mse");
  EXPECT_EQ(to_string(value_format(2, Granularity::PerToken, 128)), "2t:g128:min-mse");
  EXPECT_EQ(to_string(key_format(1)), "1c:centroids");
  EXPECT_EQ(to_string(Format{4, Granularity::PerToken, 64, RangeRule::MinMax}), "4t:g64:min-max");
}

TEST(FormatNameProperty, EveryFormatReadsBackTheSame) {
  for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8, 16})
    for (const Granularity granularity : {Granularity::PerChannel, Granularity::PerToken})
      for (const int group : {0, 1, 16, 64, 128, 99999, std::numeric_limits<int>::max()})
        for (const RangeRule rule : {RangeRule::MinMax, RangeRule::MinMse, RangeRule::Centroids}) {
          const Format format{bits, granularity, group, rule};
          const auto read = parse_format(to_string(format));
          ASSERT_TRUE(read.ok()) << read.message();
          EXPECT_EQ(*read, format) << to_string(format);
        }
}

TEST(FormatName, LeavesOutWhatIsUsual) {
  EXPECT_EQ(parse_format("4c").value(), key_format(4));
  EXPECT_EQ(parse_format("8t:g64").value(), value_format(8, Granularity::PerToken, 64));
  EXPECT_EQ(parse_format("1t").value(), value_format(1));
  EXPECT_EQ(parse_format("16").value(), Format{});
}

TEST(FormatNameHostile, RefusesEverythingElse) {
  for (const std::string name : {"",
                                 "c",
                                 "4",
                                 "9c",
                                 "0c",
                                 "04c",
                                 "-4c",
                                 "4x",
                                 "4c ",
                                 " 4c",
                                 "4C",
                                 "4c:",
                                 "4c:g",
                                 "4c:g0",
                                 "4c:g-1",
                                 "4c:g064",
                                 "4c:g2147483648",
                                 "4c:g64:",
                                 "4c:g64:g64",
                                 "4c:min-min",
                                 "4c:min-mse:",
                                 "4c:min-mse:g64",
                                 "4c:g64min-mse",
                                 "16:",
                                 "016",
                                 "17t",
                                 "4c:g6 4",
                                 "4c:g+64",
                                 "4c:MIN-MAX"}) {
    const auto format = parse_format(name);
    EXPECT_EQ(format.code(), ErrorCode::InvalidArgument) << name;
    EXPECT_THAT(
        std::string(format.message()),
        HasSubstr("format '" + name + "' does not exist: expected 16, in-keys, or <bits><c|t>"));
  }
  EXPECT_FALSE(parse_format(std::string("4c\0", 3)).ok());
  EXPECT_THAT(std::string(parse_format(std::string(1000, '\n')).message()), HasSubstr("???..."));
}

}  // namespace
}  // namespace kvtilt
