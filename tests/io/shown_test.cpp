// SPDX-License-Identifier: MIT
#include <kvtilt/io/shown.hpp>

#include <gtest/gtest.h>

#include <string>

namespace kvtilt {
namespace {

TEST(Shown, KeepsPrintableAsciiAlone) {
  std::string all;
  for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
  const std::string text = shown(all, 256);
  ASSERT_EQ(text.size(), 256u);
  for (int c = 0; c < 256; ++c)
    EXPECT_EQ(text[static_cast<std::size_t>(c)], c >= 32 && c < 127 ? static_cast<char>(c) : '?');
}

TEST(Shown, CutsLongText) {
  EXPECT_EQ(shown("12345", 5), "12345");
  EXPECT_EQ(shown("123456", 5), "12345...");
  EXPECT_EQ(shown(""), "");
}

TEST(Shown, KeepsTheEndOfALongPath) {
  EXPECT_EQ(shown_path("a/b.gguf"), "a/b.gguf");
  const std::string text = shown_path(std::string(300, 'x') + "/model.gguf");
  EXPECT_EQ(text.size(), 203u);
  EXPECT_TRUE(text.starts_with("...xxx"));
  EXPECT_TRUE(text.ends_with("/model.gguf"));
}

}  // namespace
}  // namespace kvtilt
