// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/page/fragment_order.hpp>

#include "support/fragment_code.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt::cuda {
namespace {

constexpr Role roles[] = {Role::Keys, Role::Values};

/// Keys [token][channel] and values [channel][token].
std::vector<CodeMatrix> all_matrices(Role role) {
  std::vector<CodeMatrix> list;
  for (const int tokens : {32, 64, 128})
    for (const int dim : {64, 80, 96, 112, 128, 192, 256, 576})
      list.push_back(role == Role::Keys ? CodeMatrix{tokens, dim} : CodeMatrix{dim, tokens});
  return list;
}

std::string to_string(Role role, CodeMatrix matrix) {
  return std::string(role == Role::Keys ? "keys " : "values ") + std::to_string(matrix.outer) +
         " x " + std::to_string(matrix.inner);
}

// --- A lane's registers ------------------------------------------------------------------------

TEST(FragmentPlace, AreTheLanesOfTheDrawing) {
  for (const Role role : roles) {
    EXPECT_EQ(fragment_place(role, 0, 0).lane, 0);
    EXPECT_EQ(fragment_place(role, 1, 3).lane, 0);
    EXPECT_EQ(fragment_place(role, 0, 4).lane, 1);
    EXPECT_EQ(fragment_place(role, 1, 15).lane, 3);
    EXPECT_EQ(fragment_place(role, 2, 0).lane, 4);
    EXPECT_EQ(fragment_place(role, 14, 3).lane, 28);
    EXPECT_EQ(fragment_place(role, 15, 12).lane, 31);
    EXPECT_EQ(fragment_place(role, 16 + 15, 32 + 12).lane, 31) << "of any tile";
  }
  // [row of the pair][element of the quad]: register and half.
  const int keys[2][4][2] = {{{0, 0}, {0, 1}, {2, 0}, {2, 1}}, {{1, 0}, {1, 1}, {3, 0}, {3, 1}}};
  const int values[2][4][2] = {{{0, 0}, {2, 0}, {0, 1}, {2, 1}}, {{1, 0}, {3, 0}, {1, 1}, {3, 1}}};
  for (int row = 0; row < 2; ++row)
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(fragment_place(Role::Keys, 6 + row, 8 + i).reg, keys[row][i][0]);
      EXPECT_EQ(fragment_place(Role::Keys, 6 + row, 8 + i).half, keys[row][i][1]);
      EXPECT_EQ(fragment_place(Role::Values, 6 + row, 8 + i).reg, values[row][i][0]);
      EXPECT_EQ(fragment_place(Role::Values, 6 + row, 8 + i).half, values[row][i][1]);
    }
}

/// The PTX ISA on operand A of mma.m16n8k16: register r, half h of lane (g, t) holds row
/// g + 8 (r % 2), column 2 t + 8 (r / 2) + h.
TEST(FragmentPlace, RenumbersRowsAndColumnsOfPtx) {
  for (const Role role : roles) {
    std::vector<int> column_of(16, -1);
    std::vector<int> taken(16 * 16);
    for (int outer = 0; outer < 16; ++outer)
      for (int inner = 0; inner < 16; ++inner) {
        const FragmentPlace place = fragment_place(role, outer, inner);
        const int row = place.lane / 4 + 8 * (place.reg % 2);
        const int column = 2 * (place.lane % 4) + 8 * (place.reg / 2) + place.half;
        EXPECT_EQ(row, outer / 2 + 8 * (outer % 2));
        if (outer == 0) column_of[static_cast<std::size_t>(inner)] = column;
        EXPECT_EQ(column, column_of[static_cast<std::size_t>(inner)]) << "the same for all rows";
        ++taken[static_cast<std::size_t>(16 * row + column)];
      }
    EXPECT_EQ(taken, std::vector<int>(16 * 16, 1));
  }
}

// --- Words of a lane ---------------------------------------------------------------------------

/// The (lane, word) pairs in memory order: [run of 4 words][lane][4], then [lane][2], then [lane].
TEST(LaneWords, LieInRunsOfFourThenTwoThenOne) {
  for (int words = 1; words <= 70; ++words) {
    std::size_t byte = 0;
    for (int word = 0; word < words;) {
      const int run = words - word >= 4 ? 4 : words - word >= 2 ? 2 : 1;
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < run; ++i, byte += 4)
          ASSERT_EQ(lane_word_offset(words, word + i, lane), byte)
              << words << " words, word " << word + i << ", lane " << lane;
      word += run;
    }
  }
}

/// The bit at which each element's field starts, as the list of widths gives it, for lane 5 of a
/// plane of four tiles. The arrays are indexed by register.
TEST(WordPosition, IsTheListOfWidths) {
  for (const Role role : roles)
    for (const int width : {1, 2, 4, 8, 16}) {
      const CodeMatrix matrix = {64, 16};  // tiles follow each other along outer for both roles
      for (int tile = 0; tile < 4; ++tile)
        for (int row = 0; row < 2; ++row)
          for (int i = 0; i < 4; ++i) {
            const FragmentPlace place = fragment_place(role, 2 + row, 4 + i);
            ASSERT_EQ(place.lane, 5);
            const WordPosition at = word_position(role, matrix, width, 16 * tile + 2 + row, 4 + i);
            int word = 0;
            int bit = 0;
            switch (width) {
              case 16:
                word = 4 * tile + place.reg;
                break;
              case 8:
                word = 2 * tile + place.reg / 2;
                bit = std::vector<int>{0, 8, 0, 8}[static_cast<std::size_t>(place.reg)];
                break;
              case 4:
                word = tile;
                bit = std::vector<int>{0, 4, 8, 12}[static_cast<std::size_t>(place.reg)];
                break;
              case 2:
                word = tile / 2;
                bit = std::vector<int>{0, 4, 2, 6}[static_cast<std::size_t>(place.reg)] +
                      (tile % 2 == 1 ? 8 : 0);
                break;
              default:
                bit = std::vector<int>{0, 2, 1, 3}[static_cast<std::size_t>(place.reg)] + 4 * tile;
            }
            EXPECT_EQ(at.byte, lane_word_offset(width, word, 5)) << width;
            EXPECT_EQ(at.shift, bit + 16 * place.half) << width;
          }
    }
}

/// After a shift by 0 or 8, one mask leaves one field in each half: a register of two subnormals.
TEST(WordPosition, PutsBothHalvesOfARegisterSixteenBitsApart) {
  for (const Role role : roles)
    for (const int width : {1, 2, 4, 8})
      for (int outer = 0; outer < 64; ++outer)
        for (int inner = 0; inner < 16; ++inner) {
          const FragmentPlace place = fragment_place(role, outer, inner);
          if (place.half == 1) continue;
          const int partner = inner + (role == Role::Keys ? 1 : 2);
          ASSERT_EQ(fragment_place(role, outer, partner).reg, place.reg);
          const WordPosition low = word_position(role, {64, 16}, width, outer, inner);
          const WordPosition high = word_position(role, {64, 16}, width, outer, partner);
          EXPECT_EQ(high.byte, low.byte);
          EXPECT_EQ(high.shift, low.shift + 16);
          EXPECT_LE(low.shift % 8 + width, 8) << "fp16 subnormals and up to 8 bits of them";
        }
}

TEST(HalfOffset, KeepsSixteenTokensTogether) {
  for (const Role role : roles)
    for (const CodeMatrix matrix : all_matrices(role)) {
      const int tokens = role == Role::Keys ? matrix.outer : matrix.inner;
      const int dim = role == Role::Keys ? matrix.inner : matrix.outer;
      const std::size_t run = static_cast<std::size_t>(16 * dim * 2);
      for (int token = 0; token < tokens; ++token)
        for (int channel = 0; channel < dim; ++channel) {
          const std::size_t byte = role == Role::Keys ? half_offset(role, matrix, token, channel)
                                                      : half_offset(role, matrix, channel, token);
          ASSERT_EQ(byte / run, static_cast<std::size_t>(token / 16)) << to_string(role, matrix);
        }
    }
}

// --- Every element -----------------------------------------------------------------------------

TEST(FragmentOrder, GivesEachElementItsOwnBitsAndLeavesNone) {
  for (const Role role : roles)
    for (const CodeMatrix matrix : all_matrices(role))
      for (const int width : {1, 2, 4, 8, 16}) {
        if (!supports_order(matrix, width)) continue;
        const std::size_t bytes = fragment_plane_bytes(matrix, width);
        std::vector<std::uint32_t> used(bytes / 4);
        for (int outer = 0; outer < matrix.outer; ++outer)
          for (int inner = 0; inner < matrix.inner; ++inner) {
            const WordPosition at = word_position(role, matrix, width, outer, inner);
            ASSERT_EQ(at.byte % 4, 0u);
            ASSERT_LT(at.byte, bytes) << to_string(role, matrix) << ", width " << width;
            ASSERT_TRUE(at.shift >= 0 && at.shift + width <= 32);
            const std::uint32_t field = ((1u << width) - 1) << at.shift;
            ASSERT_EQ(used[at.byte / 4] & field, 0u) << to_string(role, matrix);
            used[at.byte / 4] |= field;
          }
        ASSERT_EQ(used, std::vector<std::uint32_t>(bytes / 4, 0xffffffffu))
            << to_string(role, matrix) << ", width " << width;
      }
}

TEST(FragmentOrder, TakesTheBytesOfTheCpu) {
  for (const Role role : roles)
    for (const CodeMatrix matrix : all_matrices(role))
      for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8, 16}) {
        if (!supports_order(matrix, bits)) continue;
        std::size_t bytes = 0;
        const Planes split = planes(bits);
        for (int plane = 0; plane < split.count; ++plane) {
          EXPECT_EQ(fragment_plane_bytes(matrix, split.width[plane]),
                    plane_bytes(matrix, split.width[plane]));
          bytes += fragment_plane_bytes(matrix, split.width[plane]);
        }
        if (bits == half_bits) bytes = fragment_plane_bytes(matrix, half_bits);
        EXPECT_EQ(bytes, code_bytes(matrix, bits)) << to_string(role, matrix) << ", " << bits;
      }
}

TEST(FragmentOrder, RefusesOnlyTilesThatDoNotFillWords) {
  for (int tokens : {32, 64, 128})
    for (int dim = 8; dim <= 576; dim += 8)
      for (const int bits : {1, 2, 3, 4, 5, 6, 7, 8, 16}) {
        const bool whole = dim % 16 == 0;
        const int tiles = tokens / 16 * (dim / 16);
        const bool ones = bits == 1 || bits == 3 || bits == 5 || bits == 7;
        const bool twos = bits == 2 || bits == 3 || bits == 6 || bits == 7;
        const bool expected = whole && (!ones || tiles % 4 == 0) && (!twos || tiles % 2 == 0);
        EXPECT_EQ(supports_order({tokens, dim}, bits), expected) << dim << ", " << bits;
        EXPECT_EQ(supports_order({dim, tokens}, bits), expected) << dim << ", " << bits;
      }
}

TEST(FragmentOrder, ReadsWhatItWrote) {
  test::Random random(1);
  for (const Role role : roles)
    for (const CodeMatrix matrix : all_matrices(role))
      for (int bits = 1; bits <= 8; ++bits) {
        if (!supports_order(matrix, bits)) continue;
        std::vector<std::uint8_t> codes(code_bytes(matrix, bits));
        std::vector<int> expected;
        for (int outer = 0; outer < matrix.outer; ++outer)
          for (int inner = 0; inner < matrix.inner; ++inner) {
            expected.push_back(random.below(1 << bits));
            test::write_fragment_code(role, codes.data(), matrix, bits, outer, inner,
                                      expected.back());
          }
        std::size_t next = 0;
        for (int outer = 0; outer < matrix.outer; ++outer)
          for (int inner = 0; inner < matrix.inner; ++inner)
            ASSERT_EQ(test::read_fragment_code(role, codes.data(), matrix, bits, outer, inner),
                      expected[next++])
                << to_string(role, matrix) << ", " << bits << " bits";
      }
}

/// Three bits are stored as a plane with the upper two bits, followed by a plane with the lowest.
TEST(FragmentOrder, KeepsTheUpperBitsInFront) {
  const CodeMatrix matrix = {64, 16};
  std::vector<std::uint8_t> codes(code_bytes(matrix, 3));
  test::write_fragment_code(Role::Keys, codes.data(), matrix, 3, 0, 0, 6);
  EXPECT_EQ(codes[0], 3);
  EXPECT_EQ(codes[fragment_plane_bytes(matrix, 2)], 0);
  test::write_fragment_code(Role::Keys, codes.data(), matrix, 3, 16, 0,
                            1);  // second tile, same lane
  EXPECT_EQ(codes[0], 3);
  EXPECT_EQ(codes[fragment_plane_bytes(matrix, 2)], 1 << 4);
}

}  // namespace
}  // namespace kvtilt::cuda
