// SPDX-License-Identifier: MIT
#include <kvtilt/io/safetensors_writer.hpp>

#include "support/random.hpp"
#include "support/tensor_files.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::TemporaryFolder;
using testing::HasSubstr;

std::string bytes_of(const StoredTensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size()};
}

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  const TemporaryFolder folder;
  const std::vector<float> keys{1, 2, 3, 4, 5, 6};
  const std::vector<std::uint16_t> halves{0x3c00};
  const std::vector<TensorToWrite> tensors = {
      {"keys", "F32", {2, 3}, std::as_bytes(std::span(keys))},
      {"quote\"\xc3\xb6", "BF16", {}, std::as_bytes(std::span(halves))},
      {"empty", "I64", {4, 0}, {}}};
  const Status status =
      write_safetensors(folder.path() / "f", tensors, {{"made by", "a\ntest"}, {"", ""}});
  ASSERT_TRUE(status.ok()) << status.message();
  const auto file = SafetensorsFile::open(folder.path() / "f");
  ASSERT_TRUE(file.ok()) << file.message();
  ASSERT_EQ(file->tensors().size(), 3u);
  for (const TensorToWrite& wanted : tensors) {
    const StoredTensor& found = file->tensors().at(wanted.name);
    EXPECT_EQ(found.shape, wanted.shape);
    EXPECT_EQ(found.type.name, wanted.dtype);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(wanted.bytes.data()), wanted.bytes.size()),
              bytes_of(found));
  }
  EXPECT_EQ(file->metadata(), (SafetensorsFile::Metadata{{"", ""}, {"made by", "a\ntest"}}));
  EXPECT_EQ((folder.read("f").size() - 26) % 8, 0u);  // 26 bytes of data
}

TEST(SafetensorsWriter, WritesFilesWithNothing) {
  const TemporaryFolder folder;
  ASSERT_TRUE(write_safetensors(folder.path() / "f", {}).ok());
  EXPECT_TRUE(SafetensorsFile::open(folder.path() / "f").value().tensors().empty());
  ASSERT_TRUE(write_safetensors(folder.path() / "f", {}, {{"a", "b"}}).ok());
  EXPECT_EQ(SafetensorsFile::open(folder.path() / "f").value().metadata().at("a"), "b");
}

TEST(SafetensorsWriterProperty, RoundTripsAnything) {
  test::Random random(7);
  const TemporaryFolder folder;
  for (int run = 0; run < 50; ++run) {
    std::vector<std::string> data(static_cast<std::size_t>(random.below(6)));
    std::vector<TensorToWrite> tensors;
    for (std::size_t i = 0; i < data.size(); ++i) {
      TensorToWrite tensor;
      tensor.name = "t" + std::to_string(i * 7 % 5) + std::string(i, 'x');
      const StoredType& type =
          detail::safetensors_types[random.next() % std::size(detail::safetensors_types)];
      tensor.dtype = type.name;
      for (int d = random.below(4); d > 0; --d) tensor.shape.push_back(random.below(4));
      if (tensor.shape.empty()) tensor.shape.push_back(1);
      tensor.shape.back() *= type.block_elements;
      data[i].resize(static_cast<std::size_t>(*stored_bytes(type, tensor.shape)));
      for (char& c : data[i]) c = static_cast<char>(random.next());
      tensor.bytes = test::as_bytes(data[i]);
      tensors.push_back(tensor);
    }
    const Status status = write_safetensors(folder.path() / "f", tensors);
    ASSERT_TRUE(status.ok()) << status.message();
    const auto file = SafetensorsFile::open(folder.path() / "f");
    ASSERT_TRUE(file.ok()) << file.message();
    ASSERT_EQ(file->tensors().size(), tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i)
      EXPECT_EQ(bytes_of(file->tensors().at(tensors[i].name)), data[i]);
  }
}

TEST(SafetensorsWriterHostile, RefusesTensorsThatAreNone) {
  const TemporaryFolder folder;
  const std::string data = "12345678";
  const auto write = [&](const std::string& name, std::string_view dtype,
                         std::vector<std::int64_t> shape, bool twice = false) {
    std::vector<TensorToWrite> tensors{{name, dtype, std::move(shape), test::as_bytes(data)}};
    if (twice) tensors.push_back(tensors[0]);
    const Status status = write_safetensors(folder.path() / "f", tensors);
    EXPECT_TRUE(status.ok() || status.code() == ErrorCode::InvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(write("t", "F32", {2}), "");
  std::filesystem::remove(folder.path() / "f");
  EXPECT_EQ(write("t", "F32", {3}), "tensor 't' has 8 bytes, not those of F32 of shape [3]");
  EXPECT_THAT(write("t", "F32", {-2}), HasSubstr("has the shape [-2]"));
  EXPECT_THAT(write("t", "F32", {std::numeric_limits<std::int64_t>::max(), 2}),
              HasSubstr("not those"));
  EXPECT_THAT(write("t", "Q8_0", {2}), HasSubstr("unknown dtype Q8_0"));
  EXPECT_THAT(write("t", "F32", {2}, true), HasSubstr("has a name that is taken"));
  EXPECT_THAT(write("__metadata__", "F32", {2}), HasSubstr("has a name that is taken"));
  EXPECT_THAT(write("\xff", "F32", {2}), HasSubstr("has a name that is not UTF-8"));
  EXPECT_THAT(std::string(write_safetensors(folder.path() / "f", {}, {{"a", "\xff"}}).message()),
              HasSubstr("metadata under 'a' is not UTF-8"));
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "f"));
}

}  // namespace
}  // namespace kvtilt
