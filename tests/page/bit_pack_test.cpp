// SPDX-License-Identifier: MIT
#include <kvtilt/page/bit_pack.hpp>

#include "support/codes.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace kvtilt {
namespace {

/// Matrices of keys [token][channel] and values [channel][token]: every head dimension in pages of
/// 32 tokens, some in larger pages.
std::vector<CodeMatrix> all_matrices() {
  std::vector<CodeMatrix> list;
  for (const int tokens : {32, 64, 128})
    for (int dim = 8; dim <= 576; dim += tokens == 32 ? 8 : 56) {
      list.push_back({tokens, dim});
      list.push_back({dim, tokens});
    }
  return list;
}

TEST(Planes, SplitEveryWidthIntoDivisorsOfEight) {
  const std::vector<std::vector<int>> expected = {{1},    {2},    {2, 1},    {4},
                                                  {4, 1}, {4, 2}, {4, 2, 1}, {8}};
  for (int bits = 1; bits <= 8; ++bits) {
    const Planes split = planes(bits);
    const std::vector<int>& widths = expected[static_cast<std::size_t>(bits) - 1];
    ASSERT_EQ(split.count, static_cast<int>(widths.size())) << bits;
    for (int plane = 0; plane < max_planes; ++plane)
      EXPECT_EQ(split.width[plane],
                plane < split.count ? widths[static_cast<std::size_t>(plane)] : 0);
  }
}

TEST(BitPack, NeverSharesABit) {
  for (const CodeMatrix matrix : all_matrices())
    for (const int width : {1, 2, 4, 8}) {
      std::vector<std::uint8_t> used(plane_bytes(matrix, width));
      for (int outer = 0; outer < matrix.outer; ++outer)
        for (int inner = 0; inner < matrix.inner; ++inner) {
          const FieldPosition at = field_position(matrix, width, outer, inner);
          ASSERT_LT(at.byte, used.size()) << matrix.outer << " x " << matrix.inner;
          ASSERT_EQ(at.shift % width, 0);
          ASSERT_LE(at.shift + width, 8);
          const int field = ((1 << width) - 1) << at.shift;
          ASSERT_EQ(used[at.byte] & field, 0) << matrix.outer << " x " << matrix.inner;
          used[at.byte] = static_cast<std::uint8_t>(used[at.byte] | field);
        }
    }
}

TEST(BitPack, PadsNothingButTheLastLine) {
  for (const CodeMatrix matrix : all_matrices())
    for (const int width : {1, 2, 4, 8}) {
      const std::size_t exact = static_cast<std::size_t>(matrix.outer) *
                                static_cast<std::size_t>(matrix.inner) *
                                static_cast<std::size_t>(width) / 8;
      ASSERT_GE(plane_bytes(matrix, width), exact);
      ASSERT_LT(plane_bytes(matrix, width), exact + line_bytes);
      ASSERT_EQ(plane_bytes(matrix, width) % 32, 0u);
      if (matrix.inner % 32 == 0) {
        ASSERT_EQ(plane_bytes(matrix, width), exact);
      }
    }
}

TEST(BitPack, CodesTakeThePlanesOfTheirWidth) {
  const CodeMatrix matrix{64, 128};
  for (int bits = 1; bits <= 8; ++bits)
    EXPECT_EQ(code_bytes(matrix, bits), 64u * 128u * static_cast<std::size_t>(bits) / 8) << bits;
  EXPECT_EQ(code_bytes(matrix, half_bits), 64u * 128u * 2u);
  EXPECT_EQ(code_bytes({72, 64}, 3), 72u * 64u * 3u / 8);
}

/// Walks the lines in the order of the drawing in bit_pack.hpp: fields fill a line from the lowest
/// bits, then the next line follows; blocks of 16 lanes follow each other; a last block of 8 has
/// lines of its own.
TEST(BitPack, FollowsTheDrawing) {
  for (const CodeMatrix matrix : all_matrices())
    for (const int width : {1, 2, 4, 8}) {
      std::size_t line = 0;
      int shift = 0;
      for (int first = 0; first < matrix.outer; first += 16) {
        const int lanes = matrix.outer - first < 16 ? 8 : 16;
        if (lanes == 8 && shift != 0) {  // does not continue the full blocks' last line
          line += 64;
          shift = 0;
        }
        for (int quad_start = 0; quad_start < matrix.inner; quad_start += 4) {
          for (int lane = 0; lane < lanes; ++lane)
            for (int byte = 0; byte < 4; ++byte) {
              const FieldPosition at =
                  field_position(matrix, width, first + lane, quad_start + byte);
              ASSERT_EQ(at.byte, line + static_cast<std::size_t>(lane * 4 + byte));
              ASSERT_EQ(at.shift, shift);
            }
          shift += width;
          if (shift == 8) {
            shift = 0;
            line += static_cast<std::size_t>(lanes) * 4;
          }
        }
      }
    }
}

/// The example of the drawing: a 4-bit plane, 16 tokens, 16 channels.
TEST(BitPackGolden, DrawnBytesLieWhereDrawn) {
  const CodeMatrix matrix{16, 16};
  std::vector<std::uint8_t> codes(code_bytes(matrix, 4));
  ASSERT_EQ(codes.size(), 128u);
  for (int token = 0; token < 16; ++token)
    for (int channel = 0; channel < 16; ++channel)
      test::write_code(codes.data(), matrix, 4, token, channel, (channel + token) % 16);
  // Lane 0 of line 0: [c4 c0 | c5 c1 | c6 c2 | c7 c3] of t0, high nibble first.
  EXPECT_EQ(codes[0], 0x40);
  EXPECT_EQ(codes[1], 0x51);
  EXPECT_EQ(codes[2], 0x62);
  EXPECT_EQ(codes[3], 0x73);
  // Lane 1: t1, whose codes are one more.
  EXPECT_EQ(codes[4], 0x51);
  EXPECT_EQ(codes[7], 0x84);
  // Lane 15: t15, whose codes are one less.
  EXPECT_EQ(codes[60], 0x3f);
  EXPECT_EQ(codes[63], 0x62);
  // Line 1: [c12 c8 | ...] of t0.
  EXPECT_EQ(codes[64], 0xc8);
  EXPECT_EQ(codes[67], 0xfb);
}

TEST(BitPackGolden, ThreeBitsAreTwoPlanes) {
  const CodeMatrix matrix{16, 32};
  std::vector<std::uint8_t> codes(code_bytes(matrix, 3));
  ASSERT_EQ(codes.size(), 128u + 64u);
  test::write_code(codes.data(), matrix, 3, 2, 5, 0b101);  // quad 1, byte 1 of lane 2
  for (std::size_t i = 0; i < codes.size(); ++i)
    EXPECT_EQ(codes[i], i == 2 * 4 + 1 ? 0b10 << 2 : i == 128 + 2 * 4 + 1 ? 1 << 1 : 0) << i;
}

TEST(BitPackGolden, LastEightLanesHaveShortLines) {
  const CodeMatrix matrix{24, 32};
  std::vector<std::uint8_t> codes(code_bytes(matrix, 4));
  ASSERT_EQ(codes.size(), 24u * 32u / 2);
  test::write_code(codes.data(), matrix, 4, 23, 12,
                   0xf);  // quad 3 of the half block: line 1, field 1
  for (std::size_t i = 0; i < codes.size(); ++i)
    EXPECT_EQ(codes[i], i == 256 + 32 + 7 * 4 ? 0xf0 : 0) << i;
}

TEST(BitPack, ReadsWhatItWrites) {
  test::Random random(1);
  for (const CodeMatrix matrix :
       {CodeMatrix{32, 8}, {64, 72}, {128, 128}, {8, 32}, {24, 64}, {72, 64}, {576, 32}})
    for (int bits = 1; bits <= 8; ++bits) {
      std::vector<std::uint8_t> codes(code_bytes(matrix, bits));
      std::vector<int> expected;
      for (int outer = 0; outer < matrix.outer; ++outer)
        for (int inner = 0; inner < matrix.inner; ++inner) {
          expected.push_back(random.below(1 << bits));
          test::write_code(codes.data(), matrix, bits, outer, inner, expected.back());
        }
      std::size_t index = 0;
      for (int outer = 0; outer < matrix.outer; ++outer)
        for (int inner = 0; inner < matrix.inner; ++inner)
          ASSERT_EQ(read_code(codes.data(), matrix, bits, outer, inner), expected[index++])
              << bits << " bits, " << matrix.outer << " x " << matrix.inner;
    }
}

/// The leading planes hold the code's leading bits, so a reader may stop after any plane.
TEST(BitPack, LeadingPlanesHoldLeadingBits) {
  const CodeMatrix matrix{32, 64};
  std::vector<std::uint8_t> codes(code_bytes(matrix, 7));
  for (int outer = 0; outer < matrix.outer; ++outer)
    for (int inner = 0; inner < matrix.inner; ++inner)
      test::write_code(codes.data(), matrix, 7, outer, inner, (outer * 5 + inner * 3) % 128);
  for (int outer = 0; outer < matrix.outer; ++outer)
    for (int inner = 0; inner < matrix.inner; ++inner) {
      const int code = (outer * 5 + inner * 3) % 128;
      ASSERT_EQ(read_code(codes.data(), matrix, 4, outer, inner), code >> 3);
      ASSERT_EQ(read_code(codes.data(), matrix, 6, outer, inner), code >> 1);
    }
}

TEST(BitPack, SixteenBitsFillTheirSpace) {
  for (const CodeMatrix matrix : all_matrices()) {
    std::vector<bool> used(code_bytes(matrix, half_bits) / 2);
    for (int first = 0; first < matrix.outer; first += 16) {
      const int lanes = matrix.outer - first < 16 ? 8 : 16;
      std::size_t next = static_cast<std::size_t>(first * matrix.inner);
      for (int inner = 0; inner < matrix.inner; ++inner)
        for (int lane = 0; lane < lanes; ++lane) {
          const std::size_t at = half_position(matrix, first + lane, inner);
          ASSERT_EQ(at, next++);
          ASSERT_FALSE(used[at]);
          used[at] = true;
        }
    }
  }
}

TEST(BitPack, CountsBlocks) {
  EXPECT_EQ((CodeMatrix{72, 64}).full_blocks(), 4);
  EXPECT_EQ((CodeMatrix{72, 64}).blocks(), 5);
  EXPECT_EQ((CodeMatrix{64, 72}).blocks(), 4);
  EXPECT_EQ((CodeMatrix{8, 32}).full_blocks(), 0);
  EXPECT_EQ((CodeMatrix{8, 32}).quads(), 8);
}

}  // namespace
}  // namespace kvtilt
