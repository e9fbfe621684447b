// SPDX-License-Identifier: MIT
#include <kvtilt/attention/tile.hpp>

#include "support/caches.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

namespace kvtilt::detail {
namespace {

using test::Random;
using test::random_rows;
using test::Rows;
using test::StoredHead;

constexpr int page = 32;
constexpr int key_dim = 24;
constexpr int value_dim = 40;

/// 16-bit pages of one kv head, and a tile of query rows.
class Pages {
 public:
  Pages(Isa isa, int pages, std::uint64_t seed)
      : head_(head_layout(Recipe{}, key_dim, value_dim, page, 0)),
        stored_{key_dim, value_dim, {}, {}, {}, {}},
        bytes_(head_.bytes() * static_cast<std::size_t>(pages)) {
    Random random(seed);
    const Rows<float> keys = test::rounded_to_half(random_rows(random, pages * page, 1, key_dim));
    const Rows<float> values =
        test::rounded_to_half(random_rows(random, pages * page, 1, value_dim));
    stored_.add(keys, values, 0);
    for (int t = 0; t < pages * page; ++t) {
      for (int c = 0; c < key_dim; ++c) put(t / page, head_.key, t % page, c, keys.at(t, 0, c));
      for (int c = 0; c < value_dim; ++c)
        put(t / page, head_.value, c, t % page, values.at(t, 0, c));
    }
    const LayerShape shape{1, key_dim, value_dim, 0};
    const cpu::Kernels* kernels = cpu::kernels<AllFormats>(isa);
    WorkspaceCarver measure(nullptr);
    const AttentionTile measured(shape, page, kernels, Arithmetic::Exact, measure);
    workspace_.resize(measure.used() + page_alignment, std::byte{0xff});
    WorkspaceCarver carver(workspace_.data() + page_alignment -
                           reinterpret_cast<std::uintptr_t>(workspace_.data()) % page_alignment);
    tile_.emplace(shape, page, kernels, Arithmetic::Exact, carver);
  }

  AttentionTile& tile() { return *tile_; }
  [[nodiscard]] const StoredHead& stored() const { return stored_; }

  /// Adds a row whose query is scaled as attend() scales it for a logit scale of 1.
  void add_row(const float* query, std::int64_t position, int window = 0) {
    RowRule rule{};
    rule.position = position;
    rule.first_position = window > 0 ? std::max<std::int64_t>(0, position - window + 1) : 0;
    rule.first_sink = rule.first_position;
    rule.end_position = position + 1;
    rule.tree_start = std::numeric_limits<std::int64_t>::max() / 2;
    float* place = tile_->add_row(rule);
    for (int c = 0; c < key_dim; ++c) place[c] = query[c] * log2_e;
  }
  void add_page(int index, int tokens = page) {
    tile_->add_page(head_, bytes_.data() + head_.bytes() * static_cast<std::size_t>(index), 0,
                    std::int64_t{index} * page, tokens, false);
    if (++pages_added_ % span_pages == 0) tile_->end_span();
  }
  /// Whether row r holds the attention of `query` to the positions [first, last].
  testing::AssertionResult finishes(int r, const float* query, std::int64_t first,
                                    std::int64_t last) {
    tile_->end_span();
    std::vector<float> out(value_dim, 77.0f);
    const float lse = tile_->finish(r, out.data());
    const test::OracleRow expected = test::oracle_row(stored_, query, first, last, 1.0);
    if (expected.empty) {
      const bool zeros = std::all_of(out.begin(), out.end(), [](float x) { return x == 0.0f; });
      return zeros && test::is_minus_infinity(lse)
                 ? testing::AssertionSuccess()
                 : testing::AssertionFailure() << "row " << r << " should be empty, lse " << lse;
    }
    if (!test::is_finite(lse) ||
        std::abs(static_cast<double>(lse) - expected.lse) > expected.lse_bound)
      return testing::AssertionFailure()
             << "row " << r << ": lse " << lse << ", expected " << expected.lse;
    for (std::size_t c = 0; c < value_dim; ++c)
      if (!test::is_finite(out[c]) ||
          std::abs(static_cast<double>(out[c]) - expected.out[c]) > expected.bound)
        return testing::AssertionFailure() << "row " << r << ", channel " << c << ": " << out[c]
                                           << ", expected " << expected.out[c];
    return testing::AssertionSuccess();
  }

 private:
  void put(int index, const TensorLayout& tensor, int outer, int inner, float value) {
    const F16 half = to_f16(value);
    std::memcpy(bytes_.data() + head_.bytes() * static_cast<std::size_t>(index) + tensor.codes +
                    2 * half_position(tensor.matrix, outer, inner),
                &half, sizeof half);
  }

  HeadLayout head_;
  StoredHead stored_;
  std::vector<std::byte> bytes_;
  std::vector<std::byte> workspace_;
  std::optional<AttentionTile> tile_;
  int pages_added_ = 0;
};

TEST(WorkspaceCarver, MeasuresWhatItWouldTake) {
  alignas(64) std::byte memory[1024];
  WorkspaceCarver measure(nullptr);
  WorkspaceCarver carver(memory);
  for (const std::size_t count : {3u, 16u, 1u, 40u}) {
    EXPECT_EQ(measure.take<float>(count), nullptr);
    float* place = carver.take<float>(count);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(place) % page_alignment, 0u);
    EXPECT_EQ(measure.used(), carver.used());
    EXPECT_LE(reinterpret_cast<std::byte*>(place + count), memory + carver.used());
  }
  EXPECT_EQ(carver.used(), 64u + 64 + 64 + 160);
}

TEST(AttentionTile, RowsSeeUpToTheirOwnPosition) {
  for (const Isa isa : test::usable_isas()) {
    Pages pages(isa, 4, 1);
    Random random(2);
    const Rows<float> queries = random_rows(random, 8, 1, key_dim);
    constexpr int positions[] = {0, 1, 31, 32, 33, 63, 90, 127};
    for (int r = 0; r < 8; ++r) pages.add_row(&queries.at(r, 0, 0), positions[r]);
    for (int index = 0; index < 4; ++index) pages.add_page(index);
    for (int r = 0; r < 8; ++r)
      EXPECT_TRUE(pages.finishes(r, &queries.at(r, 0, 0), 0, positions[r]));
  }
}

TEST(AttentionTile, RowsSeeTheirWindowOnly) {
  for (const Isa isa : test::usable_isas()) {
    Pages pages(isa, 4, 3);
    Random random(4);
    const Rows<float> query = random_rows(random, 1, 1, key_dim);
    constexpr int windows[] = {1, 2, 27, 28, 29, 100, 1000};
    for (const int window : windows) pages.add_row(query.data.data(), 123, window);
    for (int index = 0; index < 4; ++index) pages.add_page(index);
    for (int r = 0; r < 7; ++r)
      EXPECT_TRUE(pages.finishes(r, query.data.data(), std::max(0, 123 - windows[r] + 1), 123));
  }
}

TEST(AttentionTile, SlotsBehindThePagesTokensAreNotSeen) {
  for (const Isa isa : test::usable_isas())
    for (int tokens = 0; tokens <= page; ++tokens) {
      Pages pages(isa, 1, 5);
      Random random(6);
      const Rows<float> query = random_rows(random, 1, 1, key_dim);
      pages.add_row(query.data.data(), 1000);
      pages.add_page(0, tokens);
      EXPECT_TRUE(pages.finishes(0, query.data.data(), 0, tokens - 1)) << tokens;
    }
}

TEST(AttentionTile, ARowThatSeesNothingIsZeroWithALseOfMinusInfinity) {
  for (const Isa isa : test::usable_isas()) {
    Pages pages(isa, 3, 7);
    Random random(8);
    const Rows<float> query = random_rows(random, 1, 1, key_dim);
    pages.add_row(query.data.data(), 10);  // sees nothing: its position is before the only page
    pages.add_row(query.data.data(), 70);
    pages.add_page(2);
    EXPECT_TRUE(pages.finishes(0, query.data.data(), 1, 0));
    EXPECT_TRUE(pages.finishes(1, query.data.data(), 64, 70));
    pages.tile().clear();
    pages.add_row(query.data.data(), 70);  // the tile absorbs no page at all
    EXPECT_TRUE(pages.finishes(0, query.data.data(), 1, 0));
  }
}

TEST(AttentionTile, SpansOfPagesJoin) {
  for (const Isa isa : test::usable_isas())
    for (const int count : {span_pages - 1, span_pages, span_pages + 1, 3 * span_pages}) {
      Pages pages(isa, count, 9);
      Random random(10);
      const Rows<float> queries = random_rows(random, 5, 1, key_dim);
      for (int r = 0; r < 5; ++r) pages.add_row(&queries.at(r, 0, 0), r == 4 ? 40 : 1 << 20);
      for (int index = 0; index < count; ++index) pages.add_page(index);
      for (int r = 0; r < 5; ++r)
        EXPECT_TRUE(pages.finishes(r, &queries.at(r, 0, 0), 0, r == 4 ? 40 : count * page - 1));
    }
}

TEST(AttentionTile, ClearForgetsRowsAndPages) {
  for (const Isa isa : test::usable_isas()) {
    Pages pages(isa, 2, 11);
    Random random(12);
    const Rows<float> queries = random_rows(random, tile_rows, 1, key_dim, 3.0f);
    for (int round = 0; round < 3; ++round) {
      pages.tile().clear();
      const int rows = round == 1 ? 3 : tile_rows;
      for (int r = 0; r < rows; ++r) pages.add_row(&queries.at(r, 0, 0), 50 - round);
      pages.add_page(0);
      pages.add_page(1);
      for (int r = 0; r < rows; ++r)
        EXPECT_TRUE(pages.finishes(r, &queries.at(r, 0, 0), 0, 50 - round));
    }
  }
}

TEST(AttentionTile, PagesMayComeInAnyOrder) {
  for (const Isa isa : test::usable_isas()) {
    Pages pages(isa, 5, 13);
    Random random(14);
    const Rows<float> query = random_rows(random, 1, 1, key_dim, 4.0f);
    for (int start = 0; start < 5; ++start) {
      pages.tile().clear();
      pages.add_row(query.data.data(), 150);
      for (int i = 0; i < 5; ++i) pages.add_page((start + 2 * i) % 5);
      EXPECT_TRUE(pages.finishes(0, query.data.data(), 0, 150));
    }
  }
}

// Pages of 64 are joined in pairs, but only the second may be short.
TEST(AttentionTile, AShortPageIsTheLastOfItsGroup) {
  Random random(15);
  KVCache cache = test::make_cache(LayerShape{1, 64, 64}, presets::k8v8,
                                   {.page_tokens = 64, .sink_tokens = 0, .recent_tokens = 0});
  const SequenceId id = test::open_reserved(cache, 200);
  const Rows<float> rows = random_rows(random, 64, 1, 64);
  KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(), rows.view()));
  KVTILT_EXPECT_OK(cache.truncate(id, 20));
  KVTILT_EXPECT_OK(cache.append(id, 0, rows.view(), rows.view()));
  const LayerView view = cache.view(id, 0).value();
  ASSERT_EQ(view.page_count, 2);
  ASSERT_EQ(view.pages[1].kind, PageKind::Sealed);
  EXPECT_TRUE(test::attends_within_bound(view, test::random_queries(random, view.shape, 1, 2)));
}

}  // namespace
}  // namespace kvtilt::detail
