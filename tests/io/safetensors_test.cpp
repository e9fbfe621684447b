// SPDX-License-Identifier: MIT
#include <kvtilt/io/safetensors.hpp>

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

using test::safetensors_bytes;
using test::TemporaryFolder;
using testing::AllOf;
using testing::HasSubstr;

const std::string eight_bytes = "12345678";

/// The error of a file with these bytes; "" when it opens.
std::string safetensors_error(const std::string& bytes) {
  const std::vector<std::byte> tight = test::tight_copy(bytes);
  const auto file = SafetensorsFile::parse(tight, "f");
  EXPECT_TRUE(file.ok() || file.code() == ErrorCode::Corrupt);
  return std::string(file.message());
}

std::string safetensors_error(const std::string& header, const std::string& data) {
  return safetensors_error(safetensors_bytes(header, data));
}

/// The error of a file with one tensor "t" described by `entry` over eight bytes of data.
std::string entry_error(const std::string& entry) {
  return safetensors_error(R"({"t":)" + entry + "}", eight_bytes);
}

TEST(Safetensors, CutsTensorsOutOfTheFile) {
  const TemporaryFolder folder;
  const auto path = folder.write(
      "f", safetensors_bytes(R"({"__metadata__":{"format":"pt"},)"
                             R"("b":{"dtype":"F16","shape":[1,2],"data_offsets":[4,8]},)"
                             R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                             R"("none":{"dtype":"I64","shape":[0,3],"data_offsets":[8,8]}})",
                             eight_bytes));
  auto opened = SafetensorsFile::open(path);
  ASSERT_TRUE(opened.ok()) << opened.message();
  const SafetensorsFile file = *std::move(opened);
  ASSERT_EQ(file.tensors().size(), 3U);
  const StoredTensor& b = file.tensors().at("b");
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.file, path.string());
  EXPECT_EQ(b.type.name, "F16");
  EXPECT_EQ(b.shape, (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(b.bytes.data()), b.bytes.size()), "5678");
  EXPECT_TRUE(file.tensors().at("a").shape.empty());
  EXPECT_TRUE(file.tensors().at("none").bytes.empty());
  EXPECT_EQ(file.metadata().at("format"), "pt");
}

TEST(SafetensorsGolden, ReadsWhatThePackageWrote) {
  const auto file = SafetensorsFile::open(test::golden_file("tensors.safetensors"));
  ASSERT_TRUE(file.ok()) << file.message();
  EXPECT_EQ(test::expect_floats_of_packages(file->tensors()), 7);
  EXPECT_EQ(file->metadata().at("made by"), "k\xc3\xb6rner \"&\" co");
  EXPECT_EQ(file->tensors().at("i64").type.encoding, Encoding::None);
  EXPECT_EQ(file->tensors().size(), 16u);
}

// What the reference reader opens: https://github.com/huggingface/safetensors
TEST(Safetensors, IgnoresWhatTheFormatDoesNotDefine) {
  EXPECT_EQ(entry_error(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"note":{"x":1}})"), "");
  EXPECT_EQ(safetensors_error(R"({"__metadata__":null})", ""), "");
  EXPECT_EQ(safetensors_error(" {}  \n ", ""), "");
}

// Rows of three 4-bit elements begin within bytes: only the whole tensor has whole bytes.
TEST(Safetensors, ElementsBelowAByteArePackedAcrossRows) {
  EXPECT_EQ(entry_error(R"({"dtype":"F4","shape":[2,8],"data_offsets":[0,8]})"), "");
  const std::string odd = R"({"t":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]}})";
  const std::vector<std::byte> bytes = test::tight_copy(safetensors_bytes(odd, "123"));
  const auto file = SafetensorsFile::parse(bytes, "f");
  ASSERT_TRUE(file.ok()) << file.message();
  EXPECT_EQ(read_floats(file->tensors().at("t")).code(), ErrorCode::Unsupported);
  EXPECT_EQ(
      safetensors_error(R"({"t":{"dtype":"F6_E2M3","shape":[2,2],"data_offsets":[0,3]}})", "123"),
      "");
  EXPECT_THAT(entry_error(R"({"dtype":"F4","shape":[3],"data_offsets":[0,2]})"),
              HasSubstr("which no file of F4 can hold"));
  EXPECT_THAT(entry_error(R"({"dtype":"F4","shape":[5,3,2],"data_offsets":[0,8]})"),
              HasSubstr("needs 15"));
}

TEST(SafetensorsHostile, RefusesFilesThatAreNone) {
  const TemporaryFolder folder;
  const auto absent = SafetensorsFile::open(folder.path() / "absent");
  EXPECT_EQ(absent.code(), ErrorCode::FileAccess);
  EXPECT_THAT(std::string(absent.message()), AllOf(HasSubstr("absent"), HasSubstr("No such file")));
  EXPECT_THAT(safetensors_error(""), HasSubstr("0 bytes are too few"));
  EXPECT_THAT(safetensors_error("1234567"), HasSubstr("7 bytes are too few"));
  EXPECT_THAT(safetensors_error("a text of some length"), HasSubstr("not a safetensors file?"));
}

TEST(SafetensorsHostile, RefusesHeadersThatDoNotFitTheFile) {
  const std::string good = safetensors_bytes("{}", "");
  EXPECT_EQ(safetensors_error(good), "");
  EXPECT_THAT(safetensors_error(good.substr(0, 9)),
              HasSubstr("should have 2 bytes, but only 1 follow"));
  EXPECT_THAT(safetensors_error(std::string(8, '\xFF') + "{}"),
              HasSubstr("18446744073709551615 bytes"));
  std::string at_limit = good;
  at_limit[7] = '\x7F';
  EXPECT_THAT(safetensors_error(at_limit), HasSubstr("the format allows 100000000"));
}

TEST(SafetensorsHostile, RefusesHeadersThatAreNotAJsonObject) {
  EXPECT_THAT(safetensors_error("{\"a\":", ""), HasSubstr("f header:1: not valid JSON"));
  EXPECT_THAT(safetensors_error("[]", ""),
              HasSubstr("f header:1: the document is a list, not an object"));
  EXPECT_THAT(safetensors_error("{} x", ""), HasSubstr("not valid JSON"));
  EXPECT_THAT(safetensors_error(std::string("{}\0\0", 4), ""), HasSubstr("not valid JSON"));
  EXPECT_THAT(safetensors_error("\xEF\xBB\xBF{}", ""), HasSubstr("begins with a byte order mark"));
  EXPECT_THAT(safetensors_error("{\"a\":\"\xFF\"}", ""), HasSubstr("not valid JSON"));
  EXPECT_THAT(safetensors_error(std::string(200000, '['), ""), HasSubstr("more than 64 deep"));
  EXPECT_THAT(safetensors_error(R"({"t":1,"t":2})", ""), HasSubstr("key 't' appears twice"));
  EXPECT_THAT(safetensors_error(R"({"__metadata__":{"a":1}})", ""),
              HasSubstr("key 'a' of '__metadata__' is 1, not a string"));
  EXPECT_THAT(safetensors_error(R"({"__metadata__":"a"})", ""),
              HasSubstr("is \"a\", not an object"));
}

TEST(SafetensorsHostile, RefusesEntriesThatDescribeNoTensor) {
  EXPECT_THAT(entry_error("7"), HasSubstr("key 't' is 7, not an object"));
  EXPECT_THAT(entry_error(R"({"shape":[2],"data_offsets":[0,8]})"),
              HasSubstr("key 't' has no key 'dtype'"));
  EXPECT_THAT(entry_error(R"({"dtype":"F33","shape":[2],"data_offsets":[0,8]})"),
              HasSubstr("tensor 't' has the unknown dtype \"F33\""));
  EXPECT_THAT(entry_error(R"({"dtype":32,"shape":[2],"data_offsets":[0,8]})"),
              HasSubstr("key 'dtype' of 't' is 32, not a string"));
  EXPECT_THAT(entry_error(R"({"dtype":"F32","data_offsets":[0,8]})"), HasSubstr("no key 'shape'"));
  EXPECT_THAT(entry_error(R"({"dtype":"F32","shape":[2]})"), HasSubstr("no key 'data_offsets'"));
  EXPECT_THAT(entry_error(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})"),
              HasSubstr("key 'shape' of 't' is 2, not a list"));
  for (const std::string shape : {"[-2]", "[2.0]", "[\"2\"]", "[null]"}) {
    EXPECT_THAT(entry_error(R"({"dtype":"F32","shape":)" + shape + R"(,"data_offsets":[0,8]})"),
                HasSubstr("element 0 of key 'shape' of 't' is"));
  }
  for (const std::string offsets : {"[0]", "[0,8,8]", "[-8,8]", "[0.5,8]", "8"}) {
    EXPECT_THAT(entry_error(R"({"dtype":"F32","shape":[2],"data_offsets":)" + offsets + "}"),
                HasSubstr("data_offsets"));
  }
}

TEST(SafetensorsHostile, RefusesShapesThatOverflow) {
  for (const std::string shape :
       {"[4611686018427387904,2]", "[9223372036854775807]", "[4294967296,4294967296,4294967296]",
        "[4294967296,4294967296,0]"}) {
    EXPECT_THAT(entry_error(R"({"dtype":"F32","shape":)" + shape + R"(,"data_offsets":[0,8]})"),
                HasSubstr("which no file of F32 can hold"));
  }
  EXPECT_THAT(entry_error(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]})"),
              HasSubstr("is 1.84467440737e+19, not a whole number"));
  EXPECT_THAT(entry_error(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"),
              HasSubstr("has 8 bytes, but F32 of shape [3] needs 12"));
}

TEST(SafetensorsHostile, RefusesOffsetsThatLeaveTheFileOrCross) {
  EXPECT_THAT(entry_error(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"),
              HasSubstr("element 1 of key 'data_offsets' of 't' is 0, not a whole number from 8"));
  EXPECT_THAT(entry_error(R"({"dtype":"F32","shape":[2],"data_offsets":[4,12]})"),
              HasSubstr("ends at byte 12 of the data, but the file has only 8"));
  EXPECT_THAT(entry_error(R"({"dtype":"F32","shape":[2],"data_offsets":[0,9223372036854775807]})"),
              HasSubstr("ends at byte 9223372036854775807"));
  const auto two = [](const std::string& a, const std::string& b) {
    return safetensors_error(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
                                 R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}",
                             eight_bytes);
  };
  EXPECT_EQ(two("[4,8]", "[0,4]"), "");
  EXPECT_THAT(safetensors_error(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                                R"("b":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}})",
                                eight_bytes),
              HasSubstr("tensor 'b' overlaps tensor 'a'"));
  EXPECT_THAT(two("[0,4]", "[3,7]"), HasSubstr("tensor 'b' overlaps tensor 'a'"));
  EXPECT_THAT(two("[0,4]", "[0,4]"), HasSubstr("overlaps"));
  EXPECT_THAT(
      safetensors_error(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", eight_bytes),
      HasSubstr("4 bytes before tensor 'a' belong to nothing"));
  EXPECT_THAT(
      safetensors_error(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", eight_bytes),
      HasSubstr("4 bytes after the last tensor belong to nothing"));
}

TEST(SafetensorsHostile, EveryTruncationAndAdditionIsRefused) {
  const std::string whole = test::read_file(test::golden_file("tensors.safetensors"));
  EXPECT_EQ(safetensors_error(whole), "");
  for (std::size_t size = 0; size < whole.size(); ++size)
    EXPECT_NE(safetensors_error(whole.substr(0, size)), "") << size;
  EXPECT_NE(safetensors_error(whole + '\0'), "");
}

TEST(SafetensorsHostile, AnyFlippedBitOfTheHeaderIsRefusedOrRead) {
  std::string bytes = test::read_file(test::golden_file("tensors.safetensors"));
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof(header));
  int refused = 0;
  for (std::size_t i = 0; i < 8 + header; ++i)
    for (int bit = 0; bit < 8; ++bit) {
      bytes[i] = static_cast<char>(bytes[i] ^ (1 << bit));
      const std::vector<std::byte> tight = test::tight_copy(bytes);
      const auto file = SafetensorsFile::parse(tight, "f");
      if (file)
        for (const auto& [name, tensor] : file->tensors()) (void)read_floats(tensor);
      else
        ++refused;
      bytes[i] = static_cast<char>(bytes[i] ^ (1 << bit));
    }
  EXPECT_GT(refused, 5000);
}

}  // namespace
}  // namespace kvtilt
