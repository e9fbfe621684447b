// SPDX-License-Identifier: MIT
#include <kvtilt/io/gguf.hpp>

#include "support/golden_file.hpp"
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
using test::TemporaryFolder;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint32_t f32 = 0, q8_0 = 8, i8 = 24;

/// The error of a file with these bytes; "" when it opens.
std::string gguf_error(const std::string& bytes, ErrorCode code = ErrorCode::Corrupt) {
  const std::vector<std::byte> tight = test::tight_copy(bytes);
  const auto file = GgufFile::parse(tight, "f");
  EXPECT_TRUE(file.ok() || file.code() == code);
  return std::string(file.message());
}

/// A file with one tensor "t" over 64 bytes of data.
std::string one_tensor(const std::vector<std::uint64_t>& dimensions, std::uint32_t type,
                       std::uint64_t offset) {
  return GgufBytes(1)
      .tensor("t", dimensions, type, offset)
      .align()
      .data(std::string(64, 'x'))
      .bytes();
}

TEST(Gguf, CutsTensorsOutOfTheFile) {
  const TemporaryFolder folder;
  const auto path = folder.write("f.gguf", GgufBytes(3, 0, 2)
                                               .tensor("b", {3, 2}, i8, 32)
                                               .tensor("a", {}, f32, 0)
                                               .tensor("none", {0, 7}, f32, 64)
                                               .align()
                                               .number(1.5f)
                                               .align()
                                               .data("abcdef")
                                               .align()
                                               .bytes());
  auto opened = GgufFile::open(path);
  ASSERT_TRUE(opened.ok()) << opened.message();
  const GgufFile file = *std::move(opened);
  ASSERT_EQ(file.tensors().size(), 3u);
  const StoredTensor& b = file.tensors().at("b");
  EXPECT_EQ(b.file, path.string());
  EXPECT_EQ(b.type.name, "I8");
  EXPECT_THAT(b.shape, ElementsAre(2, 3));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(b.bytes.data()), b.bytes.size()), "abcdef");
  EXPECT_THAT(read_floats(file.tensors().at("a")).value(), ElementsAre(1.5f));
  EXPECT_THAT(file.tensors().at("none").shape, ElementsAre(7, 0));
}

TEST(GgufGolden, ReadsWhatThePackageWrote) {
  const auto file = GgufFile::open(test::golden_file("tensors.gguf"));
  ASSERT_TRUE(file.ok()) << file.message();
  EXPECT_EQ(test::expect_floats_of_packages(file->tensors()), 4);
  EXPECT_THAT(file->tensors().at("f32").shape, ElementsAre(2, 3, 4));
  EXPECT_THAT(file->tensors().at("q8_0").shape, ElementsAre(3, 64));
  EXPECT_THAT(file->tensors().at("q4_k").shape, ElementsAre(2, 256));
  EXPECT_EQ(file->tensors().at("q4_k").type.name, "Q4_K");
  EXPECT_EQ(read_floats(file->tensors().at("q4_k")).code(), ErrorCode::Unsupported);
  EXPECT_EQ(read_floats(file->tensors().at("i32")).code(), ErrorCode::Unsupported);
}

TEST(Gguf, HonoursTheAlignmentOfTheFile) {
  const auto file = [](std::uint32_t alignment, std::size_t padding, std::uint64_t offset) {
    return GgufBytes(1, 1)
        .pair("general.alignment", 4)
        .number(alignment)
        .tensor("t", {1}, f32, offset)
        .align(padding)
        .data(std::string(16, 'x'))
        .bytes();
  };
  EXPECT_EQ(gguf_error(file(8, 8, 8)), "");
  EXPECT_EQ(gguf_error(file(1, 1, 3)), "");
  EXPECT_THAT(gguf_error(file(8, 8, 4)),
              HasSubstr("begins at byte 4 of the data, not a multiple of 8"));
  for (const std::uint32_t alignment : {0u, 3u, 48u, 1u << 21, 1u << 31})
    EXPECT_THAT(gguf_error(file(alignment, 8, 0)),
                HasSubstr("general.alignment is " + std::to_string(alignment) + ", not a power"));
  EXPECT_THAT(gguf_error(GgufBytes(0, 1).pair("general.alignment", 8).string("8").bytes()),
              HasSubstr("key 'general.alignment' is string, not an integer"));
}

TEST(GgufHostile, RefusesFilesThatAreNone) {
  const TemporaryFolder folder;
  EXPECT_EQ(GgufFile::open(folder.path() / "absent").code(), ErrorCode::FileAccess);
  EXPECT_THAT(gguf_error(""), HasSubstr("f: does not begin with GGUF"));
  EXPECT_THAT(gguf_error("GGU"), HasSubstr("does not begin with GGUF"));
  EXPECT_THAT(gguf_error("GGML and more than enough text"), HasSubstr("does not begin with GGUF"));
  EXPECT_THAT(gguf_error("GGUF"), HasSubstr("ends within its header"));
  for (const std::uint32_t version : {0u, 1u, 4u, 0xffffffffu})
    EXPECT_EQ(gguf_error(GgufBytes(0, 0, version).bytes(), ErrorCode::Unsupported),
              "f: is of GGUF version " + std::to_string(version) + "; only 2 and 3 can be read");
  EXPECT_THAT(gguf_error(GgufBytes(0, 0, 0x03000000u).bytes(), ErrorCode::Unsupported),
              HasSubstr("is big-endian"));
}

TEST(GgufHostile, RefusesTensorsThatAreNone) {
  EXPECT_EQ(gguf_error(one_tensor({16}, f32, 0)), "");
  EXPECT_EQ(gguf_error(one_tensor({1, 1, 1, 1, 1, 1, 1, 16}, f32, 0)), "");
  EXPECT_EQ(gguf_error(one_tensor({1, 1, 1, 1, 1, 1, 1, 1, 16}, f32, 0)),
            "f: tensor 't' has 9 dimensions, more than 8");
  for (const std::uint32_t type : {4u, 31u, 36u, 42u, 0xffffffffu})
    EXPECT_EQ(gguf_error(one_tensor({16}, type, 0), ErrorCode::Unsupported),
              "f: tensor 't' has the unknown type " + std::to_string(type));
  EXPECT_THAT(gguf_error(one_tensor({16, ~std::uint64_t{0}}, f32, 0)),
              HasSubstr("has a dimension of 18446744073709551615"));
  for (const std::vector<std::uint64_t>& dimensions : {std::vector<std::uint64_t>{1ull << 61},
                                                       {1ull << 32, 1ull << 31},
                                                       {0, 1ull << 32, 1ull << 31}})
    EXPECT_THAT(gguf_error(one_tensor(dimensions, f32, 0)),
                HasSubstr("which no file of F32 can hold"));
  EXPECT_THAT(gguf_error(one_tensor({16, 32}, q8_0, 0)),
              HasSubstr("has the shape [32, 16], which no file of Q8_0 can hold"));
  EXPECT_THAT(gguf_error(GgufBytes(2)
                             .tensor("t", {1}, f32, 0)
                             .tensor("t", {1}, f32, 32)
                             .align()
                             .data(std::string(64, 'x'))
                             .bytes()),
              HasSubstr("tensor 't' appears twice"));
}

TEST(GgufHostile, RefusesTensorsOutsideTheFileOrInEachOther) {
  EXPECT_EQ(gguf_error(one_tensor({8}, f32, 32)), "");
  EXPECT_EQ(gguf_error(one_tensor({9}, f32, 32)),
            "f: tensor 't' of 36 bytes begins at byte 32 of the data, but the file has only 64 "
            "(truncated download?)");
  EXPECT_THAT(gguf_error(one_tensor({1}, f32, 96)), HasSubstr("has only 64"));
  EXPECT_THAT(gguf_error(one_tensor({1}, f32, ~std::uint64_t{31})), HasSubstr("has only 64"));
  EXPECT_THAT(gguf_error(one_tensor({1}, f32, 1)), HasSubstr("not a multiple of 32"));
  const auto two = [](std::uint64_t a, std::uint64_t b) {
    return gguf_error(GgufBytes(2)
                          .tensor("a", {9}, f32, a)
                          .tensor("b", {8}, f32, b)
                          .align()
                          .data(std::string(96, 'x'))
                          .bytes());
  };
  EXPECT_EQ(two(0, 64), "");
  EXPECT_EQ(two(32, 0), "");
  EXPECT_EQ(two(0, 32), "f: tensor 'b' overlaps tensor 'a'");
  EXPECT_THAT(two(0, 0), HasSubstr("overlaps"));
  EXPECT_THAT(gguf_error(GgufBytes(~std::uint64_t{0}).bytes()),
              HasSubstr("is described beyond the end of the file"));
}

TEST(GgufHostile, EveryTruncationIsRefused) {
  const std::string whole = test::read_file(test::golden_file("tensors.gguf"));
  EXPECT_EQ(gguf_error(whole), "");
  // The last tensor has 12 bytes; what follows is padding.
  EXPECT_EQ(gguf_error(whole.substr(0, whole.size() - 20)), "");
  for (std::size_t size = 0; size < whole.size() - 20; ++size)
    EXPECT_NE(gguf_error(whole.substr(0, size)), "") << size;
}

TEST(GgufHostile, AnyFlippedBitOfTheHeadIsRefusedOrRead) {
  std::string bytes = test::read_file(test::golden_file("tensors.gguf"));
  int refused = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      bytes[i] = static_cast<char>(bytes[i] ^ (1 << bit));
      const std::vector<std::byte> tight = test::tight_copy(bytes);
      const auto file = GgufFile::parse(tight, "f");
      if (file) {
        for (const auto& [name, tensor] : file->tensors()) (void)read_floats(tensor);
        for (const auto& [key, value] : file->metadata().values()) {
          (void)file->metadata().integers(key);
          (void)file->metadata().string(key);
          (void)file->metadata().number(key);
        }
      } else {
        ++refused;
      }
      bytes[i] = static_cast<char>(bytes[i] ^ (1 << bit));
    }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace kvtilt
