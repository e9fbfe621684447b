// SPDX-License-Identifier: MIT
#include <kvtilt/io/byte_reader.hpp>

#include "support/tensor_files.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace kvtilt::detail {
namespace {

using test::GgufBytes;

TEST(ByteReader, TakesNumbersAndStrings) {
  const std::string bytes = GgufBytes().string("name").number<std::int16_t>(-2).bytes();
  ByteReader reader(test::as_bytes(bytes));
  EXPECT_EQ(reader.take(4).size(), 4u);
  EXPECT_EQ(reader.take_number<std::uint32_t>(), 3u);
  reader.take(16);
  EXPECT_EQ(reader.take_string(), "name");
  EXPECT_EQ(reader.left(), 2u);
  EXPECT_EQ(reader.take_number<std::int16_t>(), -2);
  EXPECT_FALSE(reader.failed());
  EXPECT_TRUE(reader.take(0).empty());
  EXPECT_FALSE(reader.failed());
}

TEST(ByteReaderHostile, StaysFailedAndGivesNothing) {
  ByteReader reader(test::as_bytes("abc"));
  EXPECT_EQ(reader.take_number<std::uint32_t>(), 0u);
  EXPECT_TRUE(reader.failed());
  EXPECT_EQ(reader.left(), 0u);
  EXPECT_EQ(reader.take_number<std::uint8_t>(), 0u);
  EXPECT_TRUE(reader.take_string().empty());
  EXPECT_TRUE(reader.failed());
}

TEST(ByteReaderHostile, RefusesLengthsBeyondTheEnd) {
  for (const std::uint64_t length : {std::uint64_t{4}, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
    std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
    bytes += "abc";
    ByteReader reader(test::as_bytes(bytes));
    EXPECT_TRUE(reader.take_string().empty());
    EXPECT_TRUE(reader.failed()) << length;
  }
}

}  // namespace
}  // namespace kvtilt::detail
