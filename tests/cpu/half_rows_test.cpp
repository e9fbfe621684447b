// SPDX-License-Identifier: MIT
#include <kvtilt/cpu/half_rows.hpp>
#include <kvtilt/cpu/kernels.hpp>

#include "support/float_modes.hpp"
#include "support/fp16_oracle.hpp"
#include "support/kernel_tables.hpp"
#include "support/page_data.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt {
namespace {

using cpu::Kernels;
using test::Block;

constexpr F16 untouched{0x5a5a};

/// A random float whose conversion is defined (no NaN), of any magnitude and often exact in fp16.
std::uint32_t random_float(test::Random& random) {
  const std::uint32_t bits = static_cast<std::uint32_t>(random.next());
  const std::uint32_t exponent = 90 + static_cast<std::uint32_t>(random.below(56));
  switch (random.below(4)) {
    case 0:
      return (bits & 0x7f800000u) == 0x7f800000u ? bits & 0x80000000u : bits;
    case 1:
      return (bits & 0x80000000u) | exponent << 23 | (bits & 0x7ff000u);  // many ties
    case 2:
      return bits & 0x807fffffu;  // subnormal
    default:
      return (bits & 0x807fffffu) | exponent << 23;
  }
}

class HalfRowsAgreement : public testing::TestWithParam<test::KernelTable> {
 protected:
  const Kernels& kernels_ = *GetParam().kernels;

  /// Converts a row as values, as one key and as sixteen keys, which must agree; checks that no
  /// other element is written.
  std::vector<F16> convert(const void* row, ElementType type, int count) const {
    const std::size_t size = type == ElementType::F32 ? 4 : 2;
    const int dim = (count + 8) / 8 * 8;
    std::vector<std::byte> padded(static_cast<std::size_t>(dim + 1) * size);
    if (count > 0) std::memcpy(padded.data() + size, row, static_cast<std::size_t>(count) * size);
    TensorView rows(static_cast<const F16*>(nullptr), 16, 1, dim);
    rows.data = padded.data() + size;  // not aligned to a line
    rows.type = type;
    rows.token_stride = 0;
    const std::vector<F16> out = write(false, rows, 1, 19);
    EXPECT_EQ(write(true, rows, 1, 19), out);
    EXPECT_EQ(write(true, rows, 16, 16), out);
    return {out.begin(), out.begin() + count};
  }

 private:
  /// Writes slots `slot` to slot + count - 1; returns what they hold, which must be the same for
  /// all.
  std::vector<F16> write(bool keys, const TensorView& rows, int count, int slot) const {
    const CodeMatrix matrix = keys ? CodeMatrix{32, rows.dim} : CodeMatrix{rows.dim, 32};
    std::vector<F16> stored(static_cast<std::size_t>(rows.dim) * 32 + 16, untouched);
    (keys ? kernels_.write_keys : kernels_.write_values)(rows, {0, count, 0}, matrix, stored.data(),
                                                         slot);
    std::vector<F16> out;
    for (int channel = 0; channel < rows.dim; ++channel)
      for (int i = 0; i < count; ++i) {
        F16& got = stored[keys ? half_position(matrix, slot + i, channel)
                               : half_position(matrix, channel, slot + i)];
        if (i == 0) out.push_back(got);
        EXPECT_EQ(got, out.back());
        got = untouched;
      }
    EXPECT_EQ(stored, std::vector<F16>(stored.size(), untouched)) << "wrote elsewhere";
    return out;
  }
};

TEST_P(HalfRowsAgreement, FloatsBecomeTheNearestInEveryMode) {
  test::Random random(1);
  for (const test::FloatMode mode : test::all_float_modes)
    for (int count = 0; count <= 70; ++count)
      for (int round = 0; round < 20; ++round) {
        std::vector<std::uint32_t> bits;
        for (int i = 0; i < count; ++i) bits.push_back(random_float(random));
        std::vector<F16> out;
        {
          const test::FloatModeGuard guard(mode);
          out = convert(bits.data(), ElementType::F32, count);
        }
        for (std::size_t i = 0; i < bits.size(); ++i)
          ASSERT_EQ(out[i].bits, test::nearest_fp16_to_float(bits[i]))
              << std::hex << bits[i] << " in mode " << static_cast<unsigned>(mode);
      }
}

TEST_P(HalfRowsAgreement, Bfloat16BecomesTheNearest) {
  std::vector<BF16> row;
  for (int bits = 0; bits < 65536; ++bits)
    if ((bits & 0x7f80) != 0x7f80) row.push_back(BF16{static_cast<std::uint16_t>(bits)});
  const std::vector<F16> out = convert(row.data(), ElementType::BF16, static_cast<int>(row.size()));
  for (std::size_t i = 0; i < row.size(); ++i)
    ASSERT_EQ(out[i].bits,
              test::nearest_fp16_to_float(static_cast<std::uint32_t>(row[i].bits) << 16));
}

/// bf16 numbers of magnitudes from 2^-17 to 65504 are converted without loss.
TEST_P(HalfRowsAgreement, Bfloat16IsExactInItsRange) {
  std::vector<BF16> row;
  for (int bits = 0; bits < 65536; ++bits) {
    const BF16 x{static_cast<std::uint16_t>(bits)};
    const std::uint32_t magnitude = (static_cast<std::uint32_t>(bits) & 0x7fffu) << 16;
    if (magnitude >= std::bit_cast<std::uint32_t>(0x1p-17f) &&
        magnitude <= std::bit_cast<std::uint32_t>(65504.0f))
      row.push_back(x);
  }
  const std::vector<F16> out = convert(row.data(), ElementType::BF16, static_cast<int>(row.size()));
  for (std::size_t i = 0; i < row.size(); ++i)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(to_float(out[i])),
              static_cast<std::uint32_t>(row[i].bits) << 16);
}

TEST_P(HalfRowsAgreement, HalvesAreCopied) {
  std::vector<F16> row;
  for (int bits = 0; bits < 65536; ++bits) row.push_back(F16{static_cast<std::uint16_t>(bits)});
  EXPECT_EQ(convert(row.data(), ElementType::F16, 65536), row);
  for (int count = 0; count < 40; ++count)
    EXPECT_EQ(convert(row.data() + 1, ElementType::F16, count),
              std::vector<F16>(row.begin() + 1, row.begin() + 1 + count));
}

TEST_P(HalfRowsAgreement, NanStaysNan) {
  for (const std::uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffffffffu, 0x7fa00000u})
    for (std::size_t at = 0; at < 37; ++at) {
      std::vector<std::uint32_t> row(37, 0x3f800000u);
      row[at] = bits;
      const std::vector<F16> out = convert(row.data(), ElementType::F32, 37);
      for (std::size_t i = 0; i < row.size(); ++i)
        ASSERT_EQ((out[i].bits & 0x7fffu) > 0x7c00u, i == at) << std::hex << bits;
      const std::vector<BF16> narrow(3, BF16{static_cast<std::uint16_t>(bits >> 16 | 0x40u)});
      ASSERT_GT(convert(narrow.data(), ElementType::BF16, 3)[1].bits & 0x7fffu, 0x7c00u);
    }
}

TEST_P(HalfRowsAgreement, EndsOfTheRangeRoundRight) {
  const std::vector<float> row = {65504.0f, 65519.99f, 65520.0f,   -65520.0f,
                                  0x1p-25f, -0x1p-25f, 0x1.8p-24f, 1.0f};
  for (int repeat = 1; repeat <= 3; ++repeat) {
    std::vector<float> longer;
    for (int i = 0; i < repeat; ++i) longer.insert(longer.end(), row.begin(), row.end());
    const std::vector<F16> out =
        convert(longer.data(), ElementType::F32, static_cast<int>(longer.size()));
    const std::uint16_t expected[] = {0x7bff, 0x7bff, 0x7c00, 0xfc00, 0, 0x8000, 2, 0x3c00};
    for (std::size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i].bits, expected[i % 8]) << i;
  }
}

/// Keys of 24 and values of 40 channels, two heads, three tokens, [heads, tokens, dim].
TEST_P(HalfRowsAgreement, TokensGoToTheirSlots) {
  const HeadLayout head = head_layout(Recipe{}, 24, 40, 32, 0);
  std::vector<F16> keys;
  std::vector<float> values;
  for (int i = 0; i < 2 * 3 * 24; ++i) keys.push_back(F16{static_cast<std::uint16_t>(100 + i)});
  for (int i = 0; i < 2 * 3 * 40; ++i) values.push_back(static_cast<float>(-i));
  const TensorView key_view = TensorView(keys.data(), 3, 2, 24).with_strides(24, 72);
  const TensorView value_view = TensorView(values.data(), 3, 2, 40).with_strides(40, 120);
  Block block(head.bytes(), 0x77);
  cpu::write_half_rows(kernels_, key_view, value_view, {2, 1, 1}, head, block.data(), 29);
  std::vector<bool> written(head.bytes() / 2);
  for (int channel = 0; channel < 24; ++channel) {
    const std::size_t at = half_position(head.key.matrix, 29, channel);
    EXPECT_EQ(test::halves(block.data(), head.key)[at].bits, 100 + 72 + 48 + channel);
    written[at] = true;
  }
  for (int channel = 0; channel < 40; ++channel) {
    const std::size_t at = half_position(head.value.matrix, channel, 29);
    EXPECT_EQ(to_float(test::halves(block.data(), head.value)[at]),
              -static_cast<float>(120 + 80 + channel));
    written[head.value.codes / 2 + at] = true;
  }
  for (std::size_t i = 0; i < written.size(); ++i)
    if (!written[i]) {
      EXPECT_EQ(reinterpret_cast<const F16*>(block.data())[i].bits, 0x7777) << i;
    }
  EXPECT_TRUE(block.guards_are_whole());
}

TEST_P(HalfRowsAgreement, LargestHeadsFit) {
  const HeadLayout head = head_layout(Recipe{}, max_head_dim, max_head_dim, 32, 0);
  const std::vector<BF16> row(max_head_dim, to_bf16(1.5f));
  const TensorView view(row.data(), 1, 1, max_head_dim);
  Block block(head.bytes());
  for (int slot = 0; slot < 32; ++slot)
    cpu::write_half_rows(kernels_, view, view, {0, 1, 0}, head, block.data(), slot);
  for (std::size_t i = 0; i < block.size() / 2; ++i)
    ASSERT_EQ(reinterpret_cast<const F16*>(block.data())[i], to_f16(1.5f)) << i;
}

/// Sixteen keys that fill whole lines are transposed together: the result must be the same as one
/// by one.
TEST_P(HalfRowsAgreement, RunsOfTokensAreWrittenLikeSingleOnes) {
  test::Random random(3);
  for (const int dim : {8, 24, 72, 128, 576}) {
    const HeadLayout head = head_layout(Recipe{}, dim, dim, 64, 0);
    std::vector<float> rows(static_cast<std::size_t>(64 * 2 * dim));
    for (float& x : rows) x = static_cast<float>(random.between(-2048, 2048));
    const TensorView view(rows.data(), 64, 2, dim);
    Block single(head.bytes());
    for (int slot = 0; slot < 64; ++slot)
      cpu::write_half_rows(kernels_, view, view, {slot, 1, 1}, head, single.data(), slot);
    for (int round = 0; round < 20; ++round) {
      Block runs(head.bytes());
      for (int slot = 0; slot < 64;) {
        const int count = random.between(1, 64 - slot);
        cpu::write_half_rows(kernels_, view, view, {slot, count, 1}, head, runs.data(), slot);
        slot += count;
      }
      ASSERT_EQ(test::first_difference(single, runs), -1) << dim;
      ASSERT_TRUE(runs.guards_are_whole()) << dim;
    }
  }
}

/// Every magnitude around the limit, at every position of rows of every length.
TEST_P(HalfRowsAgreement, ExceedingMagnitudesAreSeenWhereverTheyAre) {
  for (const float limit : {f16_max, 32752.0f}) {
    const std::uint32_t largest = std::bit_cast<std::uint32_t>(limit);
    for (int count = 8; count <= 88; count += 8)
      for (std::size_t at = 0; at < static_cast<std::size_t>(count); ++at)
        for (const std::uint32_t sign : {0u, 0x80000000u})
          for (const std::uint32_t bits :
               {0u, 1u, largest, largest + 1, 0x7f800000u, 0x7f800001u, 0x7fffffffu}) {
            std::vector<std::uint32_t> floats(static_cast<std::size_t>(count), sign | largest);
            floats[at] = sign | bits;
            ASSERT_EQ(kernels_.exceeds(floats.data(), ElementType::F32, count, limit),
                      bits > largest);
            const std::uint16_t narrow = static_cast<std::uint16_t>((sign | bits) >> 16);
            std::vector<std::uint16_t> halves(static_cast<std::size_t>(count),
                                              static_cast<std::uint16_t>((sign | largest) >> 16));
            halves[at] = narrow;
            ASSERT_EQ(kernels_.exceeds(halves.data(), ElementType::BF16, count, limit),
                      (narrow & 0x7fffu) > largest >> 16);
            const std::uint16_t top = to_f16(limit).bits;
            for (std::uint16_t& half : halves) half = static_cast<std::uint16_t>(sign >> 16 | top);
            for (const int half : {0, top + 0, top + 1, 0x7c00, 0x7c01, 0x7fff}) {
              halves[at] =
                  static_cast<std::uint16_t>(sign >> 16 | static_cast<std::uint32_t>(half));
              ASSERT_EQ(kernels_.exceeds(halves.data(), ElementType::F16, count, limit),
                        half > top);
            }
          }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, HalfRowsAgreement, testing::ValuesIn(test::kernel_tables()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kvtilt
