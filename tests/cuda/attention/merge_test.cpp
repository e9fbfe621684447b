// SPDX-License-Identifier: MIT
#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/attention/merge.hpp>

#include "support/attend_item.hpp"
#include "support/attention_oracle.hpp"
#include "support/emulated_threads.hpp"
#include "support/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::AttendItem;
using test::column_of;
using test::EmulatedThreads;
using test::outer_of;
using test::Random;
using test::Rows;

using MergedTraits = HalfTraits<16, 48>;
constexpr int merged_dim = MergedTraits::value_dim;

/// Logits and values of an item's tokens, each of which belongs to one part.
struct Tokens {
  Rows<float> logits;  ///< [token][row]
  Rows<float> values;
  std::vector<int> part_of;

  Tokens(Random& random, int count, int parts)
      : logits(test::random_rows(random, count, item_rows, 1, 4.0f)),
        values(test::random_rows(random, count, 1, merged_dim)) {
    for (int i = 0; i < count; ++i) part_of.push_back(random.below(parts));
  }

  /// A lane's state after the tokens of one part; sums are spread over the lanes of a column.
  [[nodiscard]] MergedTraits::State state(int part, int lane) const {
    MergedTraits::State state;
    state.clear();
    for (int e = 0; e < 4; ++e) {
      const int row = column_of(lane, e);
      float& maximum = state.maximum[e % 2];
      for (std::size_t i = 0; i < part_of.size(); ++i)
        if (part_of[i] == part)
          maximum = std::fmax(maximum, logits.at(static_cast<int>(i), row, 0));
    }
    for (std::size_t i = 0; i < part_of.size(); ++i) {
      if (part_of[i] != part) continue;
      const int token = static_cast<int>(i);
      for (int e = 0; e < 4; ++e) {
        const float weight =
            std::exp2(logits.at(token, column_of(lane, e), 0) - state.maximum[e % 2]);
        if (e < 2 && token % 8 == lane / 4) state.sum[e] += weight;
        for (int tile = 0; tile < MergedTraits::State::tiles; ++tile)
          state.output[tile][e] += weight * values.at(token, 0, tile * 16 + outer_of(lane, e));
      }
    }
    return state;
  }
};

/// An item with its output: two tokens of four heads, with gaps between heads.
struct Item : AttendItem {
  static constexpr int head_stride = merged_dim + 3;
  std::vector<float> out;
  std::vector<float> lse;

  Item() : AttendItem(Rows<float>(2, 4, 16), 100), out(8 * head_stride, 77.0f), lse(8, 77.0f) {
    arguments.layer.value_dim = merged_dim;
    arguments.out = out.data();
    arguments.out_type = ElementType::F32;
    arguments.out_head_stride = head_stride;
    arguments.out_token_stride = 4 * head_stride;
    arguments.lse = lse.data();
  }

  void expect(const Tokens& tokens, const std::vector<float>& sinks = {}) const {
    for (int row = 0; row < 8; ++row) {
      double sum = sinks.empty() ? 0 : std::exp(static_cast<double>(sinks[row % 4]));
      std::vector<double> expected(merged_dim);
      for (int t = 0; t < tokens.logits.tokens; ++t) {
        const double weight = std::exp2(static_cast<double>(tokens.logits.at(t, row, 0)));
        sum += weight;
        for (int c = 0; c < merged_dim; ++c)
          expected[static_cast<std::size_t>(c)] +=
              weight * static_cast<double>(tokens.values.at(t, 0, c));
      }
      for (int c = 0; c < merged_dim; ++c)
        EXPECT_NEAR(static_cast<double>(out[static_cast<std::size_t>(row * head_stride + c)]),
                    sum > 0 ? expected[static_cast<std::size_t>(c)] / sum : 0.0, 1e-5)
            << "row " << row;
      for (int c = merged_dim; c < head_stride; ++c)
        EXPECT_EQ(out[static_cast<std::size_t>(row * head_stride + c)], 77.0f) << "a gap";
      const float got = lse[static_cast<std::size_t>(row)];
      if (sum > 0)
        EXPECT_NEAR(static_cast<double>(got), std::log(sum), 1e-5);
      else
        EXPECT_TRUE(test::is_minus_infinity(got));
    }
  }
};

/// Warp `warp` of block `block` attends to part block * warps + warp. Each block merges its warps
/// into the workspace; then one block merges all of those and writes the output.
void merge(const Tokens& tokens, int blocks, int warps, Item& item) {
  const AttendShared shared = AttendShared::of<MergedTraits>(warps, 2, 1);
  std::vector<float> outputs(static_cast<std::size_t>(2 * (blocks + 3) * item_rows * merged_dim),
                             std::nanf(""));
  std::vector<float> states(static_cast<std::size_t>(2 * (blocks + 3) * item_rows * 2),
                            std::nanf(""));
  const AttendWorkspace workspace{nullptr, outputs.data(), states.data()};
  const ItemParts parts{3, 3 + blocks - 1, 7};
  test::emulate(blocks, 32 * warps, shared.bytes, [&](EmulatedThreads& threads) {
    MergedTraits::State state =
        tokens.state(threads.block() * warps + threads.warp(), threads.lane());
    const int stage = 2 * threads.warp() + threads.warp() % 2;  // one of its two stages
    store_warp<MergedTraits>(threads, shared,
                             static_cast<std::uint32_t>(stage) * MergedTraits::stage_bytes, state);
    threads.sync();
    for (int row = threads.warp(); row < item_rows; row += warps)
      store_part(threads, workspace, parts.slot(3 + threads.block()) * item_rows + row,
                 merge_warps<MergedTraits>(threads, shared, row));
  });
  test::emulate(1, 32 * warps, shared.bytes, [&](EmulatedThreads& threads) {
    for (int row = threads.warp(); row < item_rows; row += warps)
      write_item_row(threads, item.arguments, item.rows, row,
                     merge_blocks<merged_dim>(threads, workspace, parts, item_rows, row));
  });
}

TEST(AttendMerge, AnySplitGivesWhatOnePartGives) {
  Random random(1);
  for (const int blocks : {1, 2, 5, warp_lanes, warp_lanes + 1, 70})
    for (const int warps : {1, 4}) {
      const Tokens tokens(random, 50, blocks * warps);  // often fewer tokens than parts
      Item item;
      merge(tokens, blocks, warps, item);
      item.expect(tokens);
    }
}

TEST(AttendMerge, EmptyPartsAreNeutral) {
  Random random(2);
  Tokens tokens(random, 20, 1);
  for (const int owner : {0, 3, 11}) {
    std::fill(tokens.part_of.begin(), tokens.part_of.end(), owner);
    Item item;
    merge(tokens, 3, 4, item);
    item.expect(tokens);
  }
  const Tokens none(random, 0, 1);
  Item item;
  merge(none, 3, 4, item);
  item.expect(none);
}

TEST(AttendMerge, SinkLogitsJoinOnce) {
  Random random(3);
  const std::vector<float> sinks = {-3.0f, 0.0f, 12.0f, -400.0f};
  for (const int count : {0, 30}) {
    const Tokens tokens(random, count, 8);
    Item item;
    item.arguments.rules.sink_logits = sinks.data();
    merge(tokens, 4, 2, item);
    if (count == 0) {  // the expectation's exp(-400) would be 0
      for (int row = 0; row < 8; ++row)
        EXPECT_NEAR(item.lse[static_cast<std::size_t>(row)],
                    sinks[static_cast<std::size_t>(row % 4)], 1e-4f);
    } else {
      item.expect(tokens, sinks);
    }
  }
}

TEST(AttendMerge, WritesOnlyRowsOfTheItemInTheTypeAskedFor) {
  Random random(4);
  const Tokens tokens(random, 30, 4);
  Item whole;
  merge(tokens, 2, 2, whole);
  for (const ElementType type : {ElementType::F16, ElementType::BF16}) {
    Item item;
    std::vector<std::uint16_t> out(item.out.size(), 0xabcd);
    item.arguments.out = out.data();
    item.arguments.out_type = type;
    item.arguments.lse = nullptr;
    item.rows.rows = 5;
    merge(tokens, 2, 2, item);
    for (int row = 0; row < 8; ++row)
      for (int c = 0; c < Item::head_stride; ++c) {
        const std::size_t at = static_cast<std::size_t>(row * Item::head_stride + c);
        const std::uint16_t expected =
            type == ElementType::F16 ? to_f16(whole.out[at]).bits : to_bf16(whole.out[at]).bits;
        EXPECT_EQ(out[at], row < 5 && c < merged_dim ? expected : 0xabcd) << row << ", " << c;
      }
    EXPECT_EQ(item.lse[0], 77.0f);
  }
}

}  // namespace
}  // namespace kvtilt::cuda
