// SPDX-License-Identifier: MIT
#include <kvtilt/io/format_name.hpp>

#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/format_list.hpp>

namespace llama {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const kvtilt::CacheShape shape = kvtilt::CacheShape::uniform(2, 2, 64);
constexpr int page = 64;

std::vector<std::string> names(const std::vector<kvtilt::Format>& formats) {
  std::vector<std::string> list;
  for (const auto& format : formats) list.push_back(kvtilt::to_string(format));
  return list;
}

TEST(FormatList, WidthsStandForDefaultsOrForAllVariants) {
  const auto plain = parse_formats({"1", "4", "6"}, Variants::Default, shape, page);
  EXPECT_THAT(names(plain.keys), ElementsAre("1c:centroids", "4c:min-mse", "6c:min-max"));
  EXPECT_EQ(plain.values.size(), 3U);
  EXPECT_EQ(plain.values[1], kvtilt::value_format(4));
  const auto all = parse_formats({"k1", "k4", "v7"}, Variants::All, shape, page);
  EXPECT_EQ(all.keys.size(), 2U + 4U) << "two granularities, and two rules for 4 bits";
  EXPECT_EQ(all.values.size(), 2U);
}

TEST(FormatList, FormatsCanBeWrittenOut) {
  const auto formats =
      parse_formats({"k4c:g32", "v2t:min-max", "3c", "3c", "16"}, Variants::All, shape, page);
  ASSERT_EQ(formats.keys.size(), 3U);
  EXPECT_EQ(formats.keys[0], kvtilt::key_format(4, kvtilt::Granularity::PerChannel, 32));
  EXPECT_EQ(formats.keys[2], kvtilt::Format{});
  ASSERT_EQ(formats.values.size(), 3U);
  EXPECT_EQ(formats.values[0].rule, kvtilt::RangeRule::MinMax);
}

TEST(FormatListHostile, SaysWhatIsWrong) {
  const auto error = [](std::vector<std::string> entries) {
    return error_of([&] { (void)parse_formats(entries, Variants::All, shape, page); });
  };
  EXPECT_THAT(error({"9"}), HasSubstr("format '9' does not exist"));
  EXPECT_THAT(error({"3x"}), HasSubstr("'3x'"));
  EXPECT_THAT(error({""}), HasSubstr("--formats"));
  EXPECT_THAT(error({"k3"}), HasSubstr("nothing to store values in"));
  EXPECT_THAT(error({"v3"}), HasSubstr("nothing to store keys in"));
}

}  // namespace
}  // namespace llama
