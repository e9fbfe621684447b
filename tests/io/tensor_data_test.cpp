// SPDX-License-Identifier: MIT
#include <kvtilt/io/tensor_data.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::int64_t huge = std::numeric_limits<std::int64_t>::max();
constexpr StoredType q8_rows{"Q8_0", 32, 34, Encoding::Q8_0};

template <class T>
StoredTensor tensor(const StoredType& type, std::vector<std::int64_t> shape,
                    const std::vector<T>& data) {
  return {"f", "t", type, std::move(shape), std::as_bytes(std::span(data))};
}

TEST(TensorData, CountsRowsColumnsAndElements) {
  const auto count = [](std::vector<std::int64_t> shape) {
    const StoredTensor t{"", "", element_f32, std::move(shape), {}};
    return std::vector<std::int64_t>{t.rows(), t.columns(), t.elements()};
  };
  EXPECT_THAT(count({}), ElementsAre(1, 1, 1));
  EXPECT_THAT(count({5}), ElementsAre(1, 5, 5));
  EXPECT_THAT(count({3, 5}), ElementsAre(3, 5, 15));
  EXPECT_THAT(count({3, 5, 2}), ElementsAre(3, 10, 30));
  EXPECT_THAT(count({0, 5}), ElementsAre(0, 5, 0));
  EXPECT_EQ(shape_text(std::vector<std::int64_t>{}), "[]");
  EXPECT_EQ(shape_text(std::vector<std::int64_t>{3, 5}), "[3, 5]");
}

TEST(TensorData, CountsBytes) {
  using Shape = std::vector<std::int64_t>;
  EXPECT_EQ(stored_bytes(element_f16, Shape{}), 2);
  EXPECT_EQ(stored_bytes(element_f32, Shape{3, 5}), 60);
  EXPECT_EQ(stored_bytes(q8_rows, Shape{3, 64}), 3 * 2 * 34);
  EXPECT_EQ(stored_bytes(q8_rows, Shape{64, 3}), std::nullopt);
  EXPECT_EQ(stored_bytes(q8_rows, Shape{}), std::nullopt);
  EXPECT_EQ(stored_bytes(element_f32, Shape{0, 5}), 0);
  EXPECT_EQ(stored_bytes(element_f32, Shape{huge / 4}), huge / 4 * 4);
  EXPECT_EQ(stored_bytes(element_f32, Shape{huge / 4 + 1}), std::nullopt);
  EXPECT_EQ(stored_bytes(element_f32, Shape{1LL << 32, 1LL << 31}), std::nullopt);
  // The product without the 0 overflows.
  EXPECT_EQ(stored_bytes(element_f32, Shape{0, 1LL << 32, 1LL << 31}), std::nullopt);
}

TEST(TensorData, ReadsRows) {
  const std::vector<std::uint16_t> data{0x3c00, 0xc000, 0x0001, 0x7bff, 0x8000, 0x3555};
  const StoredTensor t = tensor(element_f16, {3, 2}, data);
  EXPECT_THAT(read_floats(t).value(), ElementsAre(1, -2, 0x1p-24f, 65504, -0.0f, 0.333251953125f));
  std::vector<float> rows(4);
  ASSERT_TRUE(read_floats(t, 1, 2, rows).ok());
  EXPECT_THAT(rows, ElementsAre(0x1p-24f, 65504, -0.0f, 0.333251953125f));
  EXPECT_TRUE(read_floats(t, 3, 0, {}).ok());
}

TEST(TensorData, ReadsUnalignedBytes) {
  std::vector<std::byte> data(1 + 8);
  const float numbers[] = {1.5f, -3.0f};
  std::memcpy(data.data() + 1, numbers, 8);
  const StoredTensor t{"f", "t", element_f32, {2}, std::span(data).subspan(1)};
  EXPECT_THAT(read_floats(t).value(), ElementsAre(1.5f, -3.0f));
}

TEST(TensorData, ReadsEveryEncoding) {
  const std::vector<std::uint16_t> bf16{0x3f80, 0xc049};
  EXPECT_THAT(read_floats(tensor(element_bf16, {2}, bf16)).value(), ElementsAre(1, -3.140625f));
  const std::vector<std::uint8_t> f8{0x38, 0xc0};
  EXPECT_THAT(read_floats(tensor(StoredType{"", 1, 1, Encoding::F8E4M3}, {2}, f8)).value(),
              ElementsAre(1, -2));
  EXPECT_THAT(read_floats(tensor(StoredType{"", 1, 1, Encoding::F8E5M2}, {2}, f8)).value(),
              ElementsAre(0.5f, -2));
  std::vector<std::uint8_t> blocks(2 * 2 * 34);
  for (std::size_t block = 0; block < 4; ++block) {
    blocks[block * 34 + 1] = static_cast<std::uint8_t>(0x3c + 4 * block);  // 1, 2, 4, 8
    for (std::size_t i = 0; i < 32; ++i)
      blocks[block * 34 + 2 + i] = static_cast<std::uint8_t>(240 + i);
  }
  const StoredTensor q8 = tensor(q8_rows, {2, 64}, blocks);
  const std::vector<float> values = read_floats(q8).value();
  for (std::size_t i = 0; i < 128; ++i)
    EXPECT_EQ(values[i], static_cast<float>(1 << (i / 32)) * (static_cast<float>(i % 32) - 16));
  std::vector<float> row(64);
  ASSERT_TRUE(read_floats(q8, 1, 1, row).ok());
  for (std::size_t i = 0; i < 64; ++i) EXPECT_EQ(row[i], values[64 + i]);
}

TEST(TensorDataHostile, RefusesWhatIsOnlyListed) {
  const auto result = read_floats(
      tensor(StoredType{"Q4_K", 256, 144, Encoding::None}, {256}, std::vector<char>(144)));
  EXPECT_EQ(result.code(), ErrorCode::Unsupported);
  EXPECT_EQ(
      std::string(result.message()),
      "f: tensor 't' is stored as Q4_K; only F32, F16, BF16, F8_E4M3, F8_E5M2 and Q8_0 can be "
      "read");
}

TEST(TensorDataHostile, RefusesRowsThatAreNotThere) {
  const StoredTensor t = tensor(element_f32, {3, 2}, std::vector<float>(6));
  std::vector<float> out(4, 7.0f);
  using Range = std::pair<std::int64_t, std::int64_t>;
  for (const auto& [first, rows] : {Range{2, 2}, {-1, 2}, {4, 0}, {0, -1}, {huge, 2}}) {
    const Status status = read_floats(t, first, rows, out);
    EXPECT_EQ(status.code(), ErrorCode::InvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("of shape [3, 2] has 3 rows, not"));
  }
  const Status status = read_floats(t, 0, 1, out);
  EXPECT_EQ(std::string(status.message()),
            "f: tensor 't' of shape [3, 2] has 2 numbers in 1 rows, the output has room for 4");
  EXPECT_THAT(out, testing::Each(7.0f));
}

}  // namespace
}  // namespace kvtilt
