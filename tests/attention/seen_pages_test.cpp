// SPDX-License-Identifier: MIT
// Attention to a part of a sequence visits the pages that hold it, and no others.
#include <kvtilt/attention/seen_pages.hpp>
#include <kvtilt/attention/work.hpp>

#include "support/aligned_memory.hpp"
#include "support/attend_check.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt {
namespace {

using test::Random;
using test::Rows;

/// A table of pages with gaps. It holds no bytes: for searches alone.
struct Table {
  std::vector<PageEntry> entries;
  LayerView view;

  /// sink_pages  of the first entries, those that hold sinks
  Table(const std::vector<int>& tokens, const std::vector<int>& gaps, int sink_pages) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const bool sinks = static_cast<int>(i) < sink_pages;
      entries.push_back(
          {nullptr, view.length + gaps[i], tokens[i], sinks ? PageKind::Sinks : PageKind::Sealed});
      view.length = entries.back().first_position + tokens[i];
    }
    view.pages = entries.data();
    view.page_count = static_cast<std::int32_t>(entries.size());
  }
};

/// The entries that attention to `seen` visits.
std::vector<int> visited(const LayerView& view, const detail::SeenPositions& seen,
                         std::int64_t first_sink) {
  std::vector<int> indices;
  const detail::TableRange pages = detail::pages_of(view, seen);
  for (int index = detail::next_page(view, pages, first_sink, 0); index < pages.last;
       index = detail::next_page(view, pages, first_sink, index + 1))
    indices.push_back(index);
  return indices;
}

TEST(SeenPages, SixteenTokensAreInOneOrTwoOf4096Pages) {
  Table table(std::vector<int>(4096, 64), std::vector<int>(4096, 0), 0);
  for (const std::int64_t first : {0, 1, 48, 49, 63, 64, 131072, 262000, 262128}) {
    std::vector<int> expected;
    for (int page = static_cast<int>(first / 64); page <= (first + 15) / 64; ++page)
      expected.push_back(page);
    EXPECT_EQ(visited(table.view, {first, first + 16}, 0), expected) << first;
  }
  EXPECT_EQ(visited(table.view, {0, 262144}, 0).size(), 4096u);
}

TEST(SeenPagesProperty, TheyAreThoseThatHoldASeenPosition) {
  Random random(1);
  for (int round = 0; round < 2000; ++round) {
    const int pages = random.below(9);
    std::vector<int> tokens;
    std::vector<int> gaps;
    for (int i = 0; i < pages; ++i) {
      tokens.push_back(random.between(1, 5));
      gaps.push_back(random.chance(3) ? random.between(1, 12) : 0);
    }
    Table table(tokens, gaps, random.below(3));
    for (PageEntry& entry : table.entries)  // an engine may mark any block
      if (random.chance(8)) entry.kind = PageKind::Sinks;
    table.view.shape.keep_sinks = random.chance(2);
    table.view.length += random.below(3);
    const std::int64_t first_sink = random.below(static_cast<int>(table.view.length) + 2);
    const std::int64_t first = first_sink + random.below(6);
    const std::int64_t end = first_sink + random.below(12) - 1;
    std::vector<int> expected;
    for (int i = 0; i < pages; ++i) {
      const PageEntry& page = table.entries[static_cast<std::size_t>(i)];
      const bool sinks = table.view.shape.keep_sinks && page.kind == PageKind::Sinks;
      if (page.first_position < end &&
          page.first_position + page.tokens > (sinks ? first_sink : first))
        expected.push_back(i);
    }
    EXPECT_EQ(visited(table.view, {first, end}, first_sink), expected) << "round " << round;
  }
}

TEST(SeenPages, ACachesSinksAreItsFirstEntry) {
  std::vector<int> tokens(1000, 64);
  tokens[0] = 4;
  Table table(tokens, std::vector<int>(1000, 0), 1);
  table.view.shape.keep_sinks = true;
  table.view.sink_tokens = 4;
  EXPECT_EQ(visited(table.view, {4 + 64 * 600, 4 + 64 * 600 + 3}, 0), (std::vector<int>{0, 601}));
  EXPECT_EQ(visited(table.view, {4 + 64 * 600, 4 + 64 * 600 + 3}, 4), (std::vector<int>{601}));
}

void run_in_turn(void*, int workers, ParallelFor::Task task, void* argument) {
  for (int worker = 0; worker < workers; ++worker) task(argument, worker);
}

test::Output attended_by(int workers, const LayerView& view, const Rows<float>& queries,
                         const AttendOptions& options) {
  test::Output output(queries.tokens, queries.heads, view.shape.value_dim);
  const AttendRequest request{view, queries.view(), output.view(), options};
  std::vector<std::byte> workspace(attend_workspace_bytes({&request, 1}, workers), std::byte{0xff});
  const AttendRequest whole{view, queries.view(), output.view(), {}};
  EXPECT_LE(workspace.size(), attend_workspace_bytes({&whole, 1}, workers));
  KVTILT_EXPECT_OK(attend({&request, 1}, workspace, {workers, &run_in_turn, nullptr}));
  return output;
}

/// Options that show the queries a small part of `view`; `mask` keeps the words of their tree.
AttendOptions random_part(Random& random, const LayerView& view, int queries,
                          std::vector<std::uint64_t>& mask) {
  AttendOptions options = test::exact_options();
  const int length = static_cast<int>(view.length);
  if (random.chance(2)) options.first_position = random.below(length + 1);
  if (random.chance(2))
    options.end_position = options.first_position + random.below(random.chance(2) ? 40 : length);
  if (random.chance(2)) options.window = random.between(1, random.chance(2) ? 20 : 2500);
  if (view.shape.window > 0) options.window = std::min(options.window, view.shape.window);
  mask.clear();
  if (random.chance(3)) {
    for (int i = 0; i < queries; ++i) mask.push_back(random.next() & detail::tree_bits(queries));
    options.tree_mask = mask;
  } else {
    options.causal = !random.chance(4);
  }
  return options;
}

/// Asks for random parts of a view, of one worker and of more. The oracle looks at every token.
void expect_right_parts(Random& random, const LayerView& view, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    const int count = random.chance(2) ? 1 : random.between(2, 24);
    const Rows<float> queries = test::random_queries(random, view.shape, count, 1);
    std::vector<std::uint64_t> mask;
    const AttendOptions options = random_part(random, view, count, mask);
    if (!detail::check_kept(view, options, view.length - count, view.length).ok()) continue;
    const test::Output alone = test::attended(view, queries, options);
    ASSERT_TRUE(test::follows_oracle(view, queries, options, alone)) << "round " << round;
    const test::Output split = attended_by(4, view, queries, options);
    ASSERT_EQ(split.out.data, alone.out.data) << "round " << round;
    ASSERT_EQ(split.lse, alone.lse) << "round " << round;
  }
}

TEST(SeenPagesRandom, PartsOfASequenceFollowTheOracleWhateverTheWorkers) {
  Random random(2);
  for (int layer = 0; layer < 8; ++layer) {
    LayerShape shape{1, 16, 16};
    shape.window = layer % 4 == 3 ? 2200 : 0;
    shape.keep_sinks = layer % 2 == 1;
    const int tokens = random.between(2200, 3000);
    const int sinks = layer < 6 ? random.between(1, 40) : 0;
    KVCache cache = test::make_cache(
        shape, parse_recipe("k16v16").value(),
        {.page_tokens = 32, .sink_tokens = sinks, .recent_tokens = random.between(8, 100)});
    const SequenceId id = test::open_reserved(cache, tokens);
    const Rows<float> rows = test::random_rows(random, tokens, 1, 16);
    KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(), rows.view()));
    if (layer >= 2) {
      const int hole = sinks + 32 * random.between(30, 45);
      KVTILT_EXPECT_OK(cache.remove(id, hole, hole + 32 * random.between(1, 10)));
    }
    SCOPED_TRACE(layer);
    expect_right_parts(random, cache.view(id, 0).value(), 40);
  }
}

TEST(SeenPagesRandom, PartsOfAnEnginesOwnTableFollowTheOracle) {
  Random random(3);
  constexpr int blocks = 80;
  const LayerPages pages =
      LayerPages::create({1, 16, 16, 0, true}, {parse_recipe("k16v16").value()}, 32).value();
  const std::size_t bytes = pages.bytes(PageKind::Tail);
  test::AlignedMemory memory(blocks * bytes);
  for (int layer = 0; layer < 4; ++layer) {
    std::vector<PageEntry> table;
    std::int64_t length = 0;
    for (int block = 0; block < blocks; ++block) {
      const int tokens = random.chance(4) ? random.between(1, 32) : 32;
      const Rows<float> rows = test::random_rows(random, tokens, 1, 16);
      std::byte* place = memory.data() + static_cast<std::size_t>(block) * bytes;
      KVTILT_EXPECT_OK(pages.write(rows.view(), rows.view(), 0, place));
      if (random.chance(10)) length += random.between(1, 100);
      table.push_back({place, length, tokens, random.chance(8) ? PageKind::Sinks : PageKind::Tail});
      length += tokens;
    }
    SCOPED_TRACE(layer);
    expect_right_parts(random, pages.view(table, length).value(), 40);
  }
}

/// Items into which up to 16 queries of a sequence of 20 spans are split.
std::int64_t items(Table& table, const AttendOptions& options, int queries = 1) {
  table.view.shape = LayerShape{1, 16, 16, 0, table.view.shape.keep_sinks};
  AttendRequest request{table.view, {}, {}, options};
  request.queries.tokens = queries;
  request.queries.heads = 1;
  std::vector<std::byte> workspace(attend_workspace_bytes({&request, 1}, 4));
  const detail::AttendWorkspace layout({&request, 1}, 4, detail::align_workspace(workspace.data()));
  return layout.works[0].tiles() * layout.works[0].spans;
}

TEST(SeenPages, OnlySpansWithASeenPageAreWork) {
  constexpr int span_tokens = 64 * detail::span_pages;
  Table table(std::vector<int>(20 * detail::span_pages, 64),
              std::vector<int>(20 * detail::span_pages, 0), 0);
  EXPECT_EQ(items(table, {}), 20);
  EXPECT_EQ(items(table, {.window = 16}), 1);
  EXPECT_EQ(items(table, {.window = span_tokens + 1}), 2);
  EXPECT_EQ(items(table, {.window = 2 * span_tokens}), 2);
  EXPECT_EQ(items(table, {.window = 2 * span_tokens}, 9), 3)
      << "the oldest query sees further back";
  EXPECT_EQ(items(table, {.first_position = span_tokens, .end_position = 3 * span_tokens}), 2);
  EXPECT_EQ(items(table, {.first_position = span_tokens - 1, .end_position = 3 * span_tokens + 1}),
            4);
  EXPECT_EQ(items(table, {.first_position = 5, .end_position = 5}), 1) << "sees nothing";
  table.view.shape.keep_sinks = true;
  EXPECT_EQ(items(table, {.window = 16}), 20) << "sinks may be anywhere";
  table.entries[0].kind = PageKind::Sinks;
  table.view.sink_tokens = 64;
  EXPECT_EQ(items(table, {.window = 16}), 2) << "the sinks' span and its own";
}

}  // namespace
}  // namespace kvtilt
