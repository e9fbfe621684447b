// SPDX-License-Identifier: MIT
#include "support.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama/safetensors.hpp>

namespace llama {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const std::string eight_bytes = "12345678";

/// The error of opening a file with these bytes; "" when it opens.
std::string open(const std::string& bytes) {
  const TemporaryFolder folder;
  folder.write("file.safetensors", bytes);
  return error_of([&] { SafetensorsFile(folder.path() / "file.safetensors"); });
}

std::string open(const std::string& header, const std::string& data) {
  return open(TemporaryFolder::with_header(header, data));
}

/// The error of a file with one tensor "t" described by `entry` over eight bytes of data.
std::string open_entry(const std::string& entry) {
  return open(R"({"t":)" + entry + "}", eight_bytes);
}

TEST(Safetensors, CutsTensorsOutOfTheFile) {
  const TemporaryFolder folder;
  folder.write("f", TemporaryFolder::with_header(
                        R"({"__metadata__":{"format":"pt"},)"
                        R"("b":{"dtype":"F16","shape":[1,2],"data_offsets":[4,8]},)"
                        R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                        R"("none":{"dtype":"I64","shape":[0,3],"data_offsets":[8,8]}})",
                        eight_bytes));
  const SafetensorsFile file(folder.path() / "f");
  ASSERT_EQ(file.tensors().size(), 3U);
  const StoredTensor& b = file.tensors().at("b");
  EXPECT_EQ(b.dtype, "F16");
  EXPECT_EQ(b.shape, (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(b.bytes.data()), b.bytes.size()), "5678");
  EXPECT_TRUE(file.tensors().at("a").shape.empty());
  EXPECT_TRUE(file.tensors().at("none").bytes.empty());
}

TEST(SafetensorsHostile, RefusesFilesThatAreNone) {
  const TemporaryFolder folder;
  EXPECT_THAT(error_of([&] { SafetensorsFile(folder.path() / "absent"); }),
              AllOf(HasSubstr("absent"), HasSubstr("No such file")));
  EXPECT_THAT(error_of([&] { SafetensorsFile{folder.path()}; }), HasSubstr("not a regular file"));
  EXPECT_THAT(open(""), HasSubstr("0 bytes are too few"));
  EXPECT_THAT(open("1234567"), HasSubstr("7 bytes are too few"));
  EXPECT_THAT(open("a text of some length"), HasSubstr("larger than the format allows"));
}

TEST(SafetensorsHostile, RefusesHeadersThatDoNotFitTheFile) {
  const std::string good = TemporaryFolder::with_header("{}", "");
  EXPECT_EQ(open(good), "");
  EXPECT_THAT(open(good.substr(0, 9)), HasSubstr("should have 2 bytes, but only 1 follow"));
  EXPECT_THAT(open(std::string(8, '\xFF') + "{}"), HasSubstr("18446744073709551615 bytes"));
  std::string at_limit = good;
  at_limit[7] = '\x7F';
  EXPECT_THAT(open(at_limit), HasSubstr("larger than the format allows"));
}

TEST(SafetensorsHostile, RefusesHeadersThatAreNotAJsonObject) {
  EXPECT_THAT(open("{\"a\":", ""), HasSubstr("header is not valid JSON"));
  EXPECT_THAT(open("[]", ""), HasSubstr("header is not a JSON object"));
  EXPECT_THAT(open("{} x", ""), HasSubstr("not valid JSON"));
  EXPECT_THAT(open("{\"a\":\"\xFF\"}", ""), HasSubstr("not valid JSON"));
  EXPECT_THAT(open(std::string(200000, '['), ""), HasSubstr("not valid JSON"));
  EXPECT_THAT(open(R"({"t":1,"t":2})", ""), HasSubstr("has the key \"t\" twice"));
}

TEST(SafetensorsHostile, RefusesEntriesThatDescribeNoTensor) {
  EXPECT_THAT(open_entry("7"), HasSubstr("tensor \"t\" is not described by a JSON object"));
  EXPECT_THAT(open_entry(R"({"shape":[2],"data_offsets":[0,8]})"), HasSubstr("no dtype"));
  EXPECT_THAT(open_entry(R"({"dtype":"F33","shape":[2],"data_offsets":[0,8]})"),
              HasSubstr("unknown dtype \"F33\""));
  EXPECT_THAT(open_entry(R"({"dtype":"F32","data_offsets":[0,8]})"), HasSubstr("no shape"));
  for (const std::string shape : {"[-2]", "[2.0]", "[\"2\"]", "[null]"}) {
    EXPECT_THAT(open_entry(R"({"dtype":"F32","shape":)" + shape + R"(,"data_offsets":[0,8]})"),
                HasSubstr("not a list of counts"));
  }
  for (const std::string offsets : {"[0]", "[0,8,8]", "[-8,8]", "[0.5,8]", "8"}) {
    EXPECT_THAT(open_entry(R"({"dtype":"F32","shape":[2],"data_offsets":)" + offsets + "}"),
                HasSubstr("no pair of data_offsets"));
  }
}

TEST(SafetensorsHostile, RefusesShapesThatOverflow) {
  for (const std::string shape : {"[4611686018427387904,2]", "[18446744073709551615]",
                                  "[4294967296,4294967296,4294967296]"}) {
    EXPECT_THAT(open_entry(R"({"dtype":"F32","shape":)" + shape + R"(,"data_offsets":[0,8]})"),
                HasSubstr("more elements than any file can hold"));
  }
  EXPECT_THAT(open_entry(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"),
              HasSubstr("has 8 bytes, but F32 of shape [3] needs 12"));
}

TEST(SafetensorsHostile, RefusesOffsetsThatLeaveTheFileOrCross) {
  EXPECT_THAT(open_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"),
              HasSubstr("end before they begin"));
  EXPECT_THAT(open_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[4,12]})"),
              HasSubstr("ends at byte 12 of the data, but the file holds only 8"));
  EXPECT_THAT(open_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]})"),
              HasSubstr("ends at byte 18446744073709551615"));
  const auto two = [](const std::string& a, const std::string& b) {
    return open(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
                    R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}",
                eight_bytes);
  };
  EXPECT_EQ(two("[4,8]", "[0,4]"), "");
  EXPECT_THAT(two("[0,4]", "[3,7]"), HasSubstr("tensor \"b\" overlaps tensor \"a\""));
  EXPECT_THAT(two("[0,4]", "[0,4]"), HasSubstr("tensor \"b\" overlaps tensor \"a\""));
  EXPECT_THAT(open(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", eight_bytes),
              HasSubstr("gap before tensor \"a\""));
  EXPECT_THAT(open(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", eight_bytes),
              HasSubstr("4 bytes after the last tensor belong to nothing"));
}

TEST(SafetensorsHostile, EveryTruncationOfAFileIsRefused) {
  const TemporaryFolder folder("llama_f32");
  const std::string whole = folder.read("model.safetensors");
  EXPECT_EQ(open(whole), "");
  for (std::size_t size = 0; size < whole.size(); size += 997) {
    EXPECT_NE(open(whole.substr(0, size)), "") << size;
  }
  EXPECT_NE(open(whole.substr(0, whole.size() - 1)), "");
  EXPECT_NE(open(whole + '\0'), "");
}

}  // namespace
}  // namespace llama
