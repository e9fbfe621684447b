// SPDX-License-Identifier: MIT
#include <kvtilt/io/gguf.hpp>
#include <kvtilt/io/gguf_metadata.hpp>

#include "support/golden_file.hpp"
#include "support/message.hpp"
#include "support/tensor_files.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::GgufBytes;
using test::message;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint32_t u8 = 0, u32 = 4, float32 = 6, boolean = 7, text = 8, array = 9, u64 = 10;

/// The error of a file with these bytes; "" when it opens.
std::string metadata_error(const GgufBytes& bytes) {
  const std::vector<std::byte> tight = test::tight_copy(bytes.bytes());
  const auto file = GgufFile::parse(tight, "f");
  EXPECT_TRUE(file.ok() || file.code() == ErrorCode::Corrupt);
  return std::string(file.message());
}

TEST(GgufMetadataGolden, ReadsWhatThePackageWrote) {
  const auto file = GgufFile::open(test::golden_file("tensors.gguf"));
  ASSERT_TRUE(file.ok()) << file.message();
  const GgufMetadata& metadata = file->metadata();
  EXPECT_EQ(metadata.string("general.architecture").value(), "llama");
  EXPECT_EQ(metadata.integer("llama.block_count").value(), 2);
  EXPECT_EQ(metadata.integer("llama.embedding_length").value(), 64);
  EXPECT_EQ(metadata.integer("llama.attention.head_count").value(), 4);
  EXPECT_THAT(metadata.integers("llama.attention.head_count").value(), ElementsAre(4));
  EXPECT_THAT(metadata.integers("llama.attention.head_count_kv").value(), ElementsAre(2, 1));
  EXPECT_EQ(metadata.integer("llama.attention.key_length").value(), 16);
  EXPECT_EQ(metadata.number("llama.attention.layer_norm_rms_epsilon").value(),
            static_cast<double>(1e-5f));
  EXPECT_EQ(metadata.number("test.double").value(), 0.1);
  EXPECT_EQ(metadata.number("llama.block_count").value(), 2.0);
  EXPECT_TRUE(metadata.boolean("test.yes").value());
  EXPECT_EQ(metadata.integer("test.negative").value(), -(1LL << 40));
  EXPECT_TRUE(metadata.contains("test.huge"));
  EXPECT_FALSE(metadata.contains("test.huger"));
  const GgufValue& words = metadata.values().find("test.words")->second;
  EXPECT_TRUE(words.array);
  EXPECT_EQ(words.type, GgufType::String);
  EXPECT_EQ(words.count, 3u);
  EXPECT_EQ(words.bytes.size(), 3 * 8 + 0 + 1 + 5u);
  EXPECT_THAT(message(metadata.integer("test.huge")),
              HasSubstr("/tensors.gguf: key 'test.huge' is uint64 beyond what an int64 counts, not "
                        "an integer"));
}

TEST(GgufMetadataHostile, NamesKeysThatAreAbsentOrOfAnotherType) {
  const auto file = GgufFile::open(test::golden_file("tensors.gguf"));
  ASSERT_TRUE(file.ok()) << file.message();
  const GgufMetadata& metadata = file->metadata();
  EXPECT_THAT(message(metadata.integer("absent")), HasSubstr("tensors.gguf: has no key 'absent'"));
  EXPECT_EQ(metadata.integer("absent").code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(metadata.integer("test.yes").code(), ErrorCode::Corrupt);
  EXPECT_THAT(message(metadata.integer("test.yes")),
              HasSubstr("key 'test.yes' is bool, not an integer"));
  EXPECT_THAT(message(metadata.integer("test.double")), HasSubstr("is float64, not an integer"));
  EXPECT_THAT(message(metadata.integer("test.halves")),
              HasSubstr("is an array of float32, not an"));
  EXPECT_THAT(message(metadata.integers("test.halves")),
              HasSubstr("not an integer or an array of integers"));
  EXPECT_THAT(message(metadata.integer("llama.attention.head_count_kv")),
              HasSubstr("is an array of int32, not an integer"));
  EXPECT_THAT(message(metadata.string("test.words")), HasSubstr("is an array of string, not a"));
  EXPECT_THAT(message(metadata.string("test.yes")), HasSubstr("is bool, not a string"));
  EXPECT_THAT(message(metadata.boolean("test.double")), HasSubstr("is float64, not a bool"));
  EXPECT_THAT(message(metadata.number("test.yes")), HasSubstr("is bool, not a number"));
}

TEST(GgufMetadataHostile, RefusesPairsThatAreNone) {
  EXPECT_EQ(metadata_error(GgufBytes(0, 1).pair("k", u8).number<std::uint8_t>(1)), "");
  EXPECT_EQ(metadata_error(GgufBytes(0, 1).pair("k", 13)),
            "f: key 'k', 1 of 1, has the unknown type 13");
  EXPECT_EQ(metadata_error(GgufBytes(0, 1).pair("k", array).number(13u).number<std::uint64_t>(0)),
            "f: key 'k', 1 of 1, has the unknown type 13");
  EXPECT_THAT(metadata_error(GgufBytes(0, 1).pair("k", boolean).number<std::uint8_t>(2)),
              HasSubstr("is a bool other than 0 and 1"));
  EXPECT_THAT(
      metadata_error(
          GgufBytes(0, 2).pair("k", u8).number<std::uint8_t>(1).pair("k", u8).number<std::uint8_t>(
              1)),
      HasSubstr("f: key 'k', 2 of 2, appears twice"));
  EXPECT_THAT(metadata_error(GgufBytes(0, 1)),
              HasSubstr("f: key '', 1 of 1, reaches beyond the end"));
  EXPECT_THAT(metadata_error(GgufBytes(0, ~std::uint64_t{0})), HasSubstr("reaches beyond the end"));
  EXPECT_THAT(metadata_error(GgufBytes(0, 1).pair("k", text).number(~std::uint64_t{0}).data("abc")),
              HasSubstr("reaches beyond the end"));
}

TEST(GgufMetadataHostile, RefusesArraysThatDoNotFit) {
  const auto with_array = [](std::uint32_t type, std::uint64_t count) {
    return GgufBytes(0, 1).pair("k", array).number(type).number(count);
  };
  EXPECT_EQ(metadata_error(with_array(u64, 0)), "");
  EXPECT_EQ(metadata_error(with_array(u32, 1).number(7u)), "");
  for (const std::uint64_t count : {2ull, 1ull << 62, ~0ull}) {
    EXPECT_THAT(metadata_error(with_array(u32, count).number(7u)),
                HasSubstr("reaches beyond the end"));
    EXPECT_THAT(metadata_error(with_array(text, count).string("a")),
                HasSubstr("reaches beyond the end"));
    EXPECT_THAT(metadata_error(with_array(array, count).number(float32).number<std::uint64_t>(0)),
                HasSubstr("reaches beyond the end"));
  }
  EXPECT_THAT(metadata_error(with_array(boolean, 2).number<std::uint16_t>(0x0301)),
              HasSubstr("is a bool"));
}

TEST(GgufMetadataHostile, RefusesDeepNesting) {
  GgufBytes nested(0, 1);
  nested.pair("k", array);
  for (int depth = 1; depth < 4; ++depth) nested.number(array).number<std::uint64_t>(1);
  GgufBytes deeper = nested;
  EXPECT_EQ(metadata_error(nested.number(u8).number<std::uint64_t>(2).data("ab")), "");
  deeper.number(array).number<std::uint64_t>(1).number(u8).number<std::uint64_t>(0);
  EXPECT_THAT(metadata_error(deeper), HasSubstr("is an array nested too deep"));
  GgufBytes bomb(0, 1);
  bomb.pair("k", array);
  for (int depth = 0; depth < 100000; ++depth) bomb.number(array).number<std::uint64_t>(1);
  EXPECT_THAT(metadata_error(bomb), HasSubstr("is an array nested too deep"));
}

}  // namespace
}  // namespace kvtilt
