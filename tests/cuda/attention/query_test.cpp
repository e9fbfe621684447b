// SPDX-License-Identifier: MIT
#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/attention/query.hpp>

#include "support/attend_item.hpp"
#include "support/emulated_threads.hpp"
#include "support/fp16_oracle.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::AttendItem;
using test::EmulatedThreads;
using test::Random;
using test::Rows;

TEST(AttendQuery, RowsAreTokensTimesHeadsOfTheGroup) {
  AttendArguments arguments{};
  arguments.layer.kv_heads = 2;
  arguments.query_heads = 6;
  arguments.gqa_ratio = 3;
  const ItemRows item{5, 5, 1, 8, 7, 15, 100, SeenRows::Causal};
  for (int column = 0; column < item.rows; ++column) {
    EXPECT_EQ(item.query_token(arguments, column), (8 + column) / 3);
    EXPECT_EQ(item.query_head(arguments, column), 3 + (8 + column) % 3);
    EXPECT_EQ(item.place(arguments, column).row, 15 + (8 + column) / 3);
    EXPECT_EQ(item.place(arguments, column).head, item.query_head(arguments, column));
  }
  EXPECT_EQ(item.query_token(arguments, 7), 8 / 3) << "columns without a row read another's";
  EXPECT_EQ(item.query_head(arguments, 7), 3 + 8 % 3);
}

// --- Operands ----------------------------------------------------------------------------------

constexpr int query_dim = 48;

/// Query rows of one type, at any offset and strides.
struct StoredQueries {
  std::vector<std::uint16_t> memory;
  Rows<float> values;  ///< rounded to the type

  /// `offset` and the strides count elements.
  StoredQueries(AttendItem& item, ElementType type, int offset, int head_stride, int token_stride)
      : memory(4000), values(item.queries) {
    const int size = type == ElementType::F32 ? 4 : 2;
    std::byte* base = reinterpret_cast<std::byte*>(memory.data()) + offset * size;
    for (int token = 0; token < values.tokens; ++token)
      for (int head = 0; head < values.heads; ++head)
        for (int c = 0; c < query_dim; ++c) {
          float& value = values.at(token, head, c);
          std::byte* to = base + (token * token_stride + head * head_stride + c) * size;
          const F16 half = to_f16(value);
          const BF16 bhalf = to_bf16(value);
          if (type == ElementType::F16) value = to_float(half);
          if (type == ElementType::BF16) value = to_float(bhalf);
          if (type == ElementType::F32)
            std::memcpy(to, &value, 4);
          else
            std::memcpy(to, type == ElementType::F16 ? &half.bits : &bhalf.bits, 2);
        }
    item.arguments.query = base;
    item.arguments.query_type = type;
    item.arguments.query_head_stride = head_stride;
    item.arguments.query_token_stride = token_stride;
  }
};

/// Compares every lane's registers with the rows, each divided by a power of two.
void expect_operands(const AttendItem& item, const Rows<float>& values) {
  int exponents[8] = {};
  for (int column = 0; column < item.rows.rows; ++column) {
    float largest = 0.0f;
    for (int c = 0; c < query_dim; ++c)
      largest =
          std::fmax(largest, std::fabs(values.at(column / values.heads, column % values.heads, c)));
    std::frexp(largest, &exponents[column]);  // largest is in [1/2, 1) * 2^exponent
  }
  test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
    QueryTile<query_dim> query;
    query.load(threads, item.arguments, item.rows);
    const int column = threads.lane() / 4;
    for (int step = 0; step < query_dim / 16; ++step)
      for (int i = 0; i < 4; ++i) {
        const int channel = 16 * step + threads.lane() % 4 * 4 + i;
        float expected = 0.0f;
        if (column < item.rows.rows)
          expected = std::ldexp(values.at(column / values.heads, column % values.heads, channel),
                                -exponents[column]);
        const std::uint32_t pair = query.half[step][i / 2];
        EXPECT_EQ(i % 2 == 0 ? low_half(pair) : high_half(pair), to_float(to_f16(expected)))
            << "column " << column << ", channel " << channel;
      }
    for (int e = 0; e < 2; ++e) {
      const int own = test::column_of(threads.lane(), e);
      if (own < item.rows.rows) {
        EXPECT_EQ(query.factor[e], std::ldexp(item.arguments.rules.scale, exponents[own]));
      }
      EXPECT_TRUE(test::is_finite(query.factor[e]));
    }
  });
}

TEST(AttendQuery, OperandsAreRowsTimesPowersOfTwo) {
  Random random(1);
  for (const ElementType type : {ElementType::F32, ElementType::F16, ElementType::BF16})
    for (const float spread : {1e-3f, 1.0f, 3000.0f})
      for (const int shift : {0, 1, 3})  // with 8-byte loads and without
        for (const int tokens : {1, 2}) {
          AttendItem item(test::random_rows(random, tokens, 3, query_dim, spread), 100);
          const StoredQueries stored(item, type, shift, query_dim + 5 * shift,
                                     4 * query_dim + 16 * shift);
          expect_operands(item, stored.values);
        }
}

TEST(AttendQuery, RowsOfZerosAndExtremesStayFinite) {
  for (const float value : {0.0f, 1e-42f, 1e-30f, 1e30f}) {
    AttendItem item(Rows<float>(1, 1, query_dim), 10);
    item.queries.at(0, 0, 7) = value;
    test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
      QueryTile<query_dim> query;
      query.load(threads, item.arguments, item.rows);
      if (threads.lane() != 1) return;
      const float back = high_half(query.half[0][1]) / item.arguments.rules.scale;
      EXPECT_TRUE(test::is_finite(back)) << value;
    });
  }
}

// --- What a column sees ------------------------------------------------------------------------

/// Whether a column sees a token, from the rules alone.
bool sees(const AttendItem& item, int column, std::int64_t token, bool sink) {
  const AttendRules& rules = item.arguments.rules;
  const std::int64_t own = item.position(column);
  const std::int64_t oldest = item.rows.length - item.rows.new_tokens;
  const std::int64_t query = own - (item.rows.length - item.rows.queries);
  if (token < rules.first_position || token >= rules.end_position) return false;
  if (token >= item.rows.length) return false;
  const bool windowed = rules.window > 0 && !(sink && rules.keep_sinks != 0);
  if (rules.causal == 0 || rules.tree_mask == nullptr || item.rows.queries > 64)
    return !(windowed && token <= own - rules.window) && (rules.causal == 0 || token <= own);
  const auto in_tree = [&](std::int64_t new_token) {
    return (rules.tree_mask[query] >> new_token & 1u) != 0;
  };
  if (token >= oldest && !in_tree(token - oldest)) return false;
  std::int64_t path = 0;
  std::int64_t newer = std::max<std::int64_t>(0, oldest - 1 - token);
  for (std::int64_t i = 0; i < item.rows.new_tokens; ++i) {
    path += in_tree(i);
    newer += in_tree(i) && oldest + i > token;
  }
  if (path == 0) ++newer;  // the row counts itself
  return !windowed || newer < rules.window;
}

struct RandomRules {
  std::vector<std::uint64_t> tree;
  std::int32_t tree_tokens[1];

  RandomRules(Random& random, AttendItem& item) {
    AttendRules& rules = item.arguments.rules;
    const int length = static_cast<int>(item.rows.length);
    for (int i = 0; i < item.rows.queries; ++i) tree.push_back(random.next() | random.next());
    if (random.chance(2)) rules.tree_mask = tree.data();
    if (rules.tree_mask == nullptr && random.chance(4)) rules.causal = 0;
    item.rows.seen = rules.seen_rows(item.rows.queries);
    tree_tokens[0] = random.between(-5, 90);
    if (random.chance(2)) rules.tree_tokens = tree_tokens;
    item.rows.new_tokens = item.arguments.new_tokens(0);
    if (random.chance(2)) rules.window = random.between(1, length + 5);
    if (random.chance(2)) rules.keep_sinks = 1;
    if (random.chance(3)) rules.first_position = random.below(length + 3);
    if (random.chance(3)) rules.end_position = random.below(length + 3);
  }
};

TEST(AttendQueryRandom, ColumnsSeeWhatTheRulesSay) {
  Random random(2);
  for (int round = 0; round < 2000; ++round) {
    const int tokens = random.chance(4) ? random.between(1, 70) : random.between(1, 8);
    AttendItem item(Rows<float>(tokens, random.chance(2) ? 1 : 3, 16), tokens + random.below(150));
    const RandomRules rules(random, item);
    item.rows.first_row = random.below(item.all_rows());
    item.rows.rows = std::min(8, item.all_rows() - item.rows.first_row);
    const std::int64_t first = random.below(static_cast<int>(item.rows.length) + 20);
    const bool sink = random.chance(2);
    for (int column = 0; column < item.rows.rows; ++column) {
      const ColumnView view = ColumnView::of(item.arguments, item.rows, column, first, sink);
      EXPECT_EQ(first + view.own, item.position(item.rows.first_row + column));
      for (const int start : {0, 16, 48}) {
        const std::uint32_t mask = view.visible(start);
        for (int slot = 0; slot < 16; ++slot) {
          // Beyond the sequence the mask may say anything: there are no tokens.
          if (first + start + slot >= item.rows.length) continue;
          ASSERT_EQ(mask >> slot & 1u,
                    sees(item, item.rows.first_row + column, first + start + slot, sink) ? 1u : 0u)
              << "round " << round << ", column " << column << ", slot " << start + slot;
        }
      }
    }
  }
}

TEST(AttendQuery, SlotsFarAwayAreOutOfSight) {
  AttendItem item(Rows<float>(1, 1, 16), std::int64_t{1} << 40);
  const std::int64_t last = item.rows.length - 1;
  EXPECT_EQ(ColumnView::of(item.arguments, item.rows, 0, 0, false).visible(0), 0xffffu);
  EXPECT_EQ(ColumnView::of(item.arguments, item.rows, 0, last, false).visible(0), 1u);
  item.arguments.rules.window = 100;
  EXPECT_EQ(ColumnView::of(item.arguments, item.rows, 0, 0, false).visible(0), 0u);
}

TEST(AttendQueryRandom, AllOfAPlainRangeIsSeenByAll) {
  Random random(3);
  int plain = 0;
  for (int round = 0; round < 1000; ++round) {
    const int tokens = random.between(1, 8);
    AttendItem item(Rows<float>(tokens, 1, 16), tokens + random.below(150));
    const RandomRules rules(random, item);
    const PlainRange range = item.rows.plain(item.arguments);
    for (std::int64_t token = std::max<std::int64_t>(range.begin, 0); token < range.end; ++token)
      for (int column = 0; column < tokens; ++column, ++plain)
        ASSERT_TRUE(sees(item, column, token, false)) << "round " << round << ", " << token;
  }
  EXPECT_GT(plain, 10000);
}

/// In a plain decode step no token needs a mask, except where a window ends.
TEST(AttendQuery, PlainRangeLeavesOutNothingItNeedNot) {
  AttendItem item(Rows<float>(1, 1, 16), 1000);
  EXPECT_EQ(item.rows.plain(item.arguments).begin, 0);
  EXPECT_EQ(item.rows.plain(item.arguments).end, 1000);
  item.arguments.rules.window = 100;
  EXPECT_EQ(item.rows.plain(item.arguments).begin, 900);
}

}  // namespace
}  // namespace kvtilt::cuda
