// SPDX-License-Identifier: MIT
#include <kvtilt/cache/sequence_layer.hpp>

#include "support/counting_allocator.hpp"
#include "support/rows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

using test::CountingAllocator;
using test::Random;

/// A layer whose blocks are only addresses.
class Layer {
 public:
  explicit Layer(const TokenPlacement& placement) : layer_(placement, memory_.get()) {}

  SequenceLayer* operator->() { return &layer_; }

  void reserve(std::int64_t length) {
    const BlockCounts missing = layer_.missing_for(length);
    ASSERT_TRUE(layer_.reserve_tables(missing));
    const std::size_t calls = memory_.calls;
    if (missing.sinks > 0) layer_.give_sink_block(new_block());
    for (std::size_t i = 0; i < missing.tail; ++i) layer_.give_tail_block(new_block());
    for (std::size_t i = 0; i < missing.sealed; ++i) layer_.give_page(new_block());
    EXPECT_EQ(memory_.calls, calls);
    const BlockCounts rest = layer_.missing_for(length);
    EXPECT_EQ(rest.sinks + rest.tail + rest.sealed, 0u);
  }
  void seal(std::int64_t length) {
    while (layer_.must_seal(length)) {
      const SequenceLayer::Sealing sealing = layer_.seal();
      EXPECT_NE(sealing.block, sealing.page);
    }
  }
  /// Returns false if the layer lacks a page.
  bool append(int tokens) {
    if (layer_.missing_for(layer_.length() + tokens).sealed > 0) return false;
    const std::int64_t length = layer_.length() + tokens;
    seal(length);
    while (tokens > 0) {
      const std::int64_t position = layer_.length();
      const SequenceLayer::Placed placed = layer_.place_tokens(tokens);
      const PageEntry& entry = layer_.entries()[layer_.entries().size() - 1];
      EXPECT_GT(placed.tokens, 0);
      EXPECT_LE(placed.tokens, tokens);
      EXPECT_EQ(placed.kind, entry.kind);
      EXPECT_EQ(placed.block, entry.data);
      EXPECT_EQ(entry.first_position + placed.slot, position);
      EXPECT_EQ(entry.tokens, placed.slot + placed.tokens);
      EXPECT_EQ(layer_.length(), position + placed.tokens);
      tokens -= placed.tokens;
      seal(length);
    }
    EXPECT_GE(layer_.tokens_before_seal(), 0);
    return true;
  }
  /// Every block given is owned exactly once, and the table has no gaps.
  void check() {
    std::multiset<std::byte*> owned;
    const auto own = [&](const Block& block) { owned.insert(block.data); };
    layer_.for_each_block(own, own, own);
    EXPECT_EQ(owned.size(), blocks_.size());
    EXPECT_EQ(std::set<std::byte*>(owned.begin(), owned.end()).size(), blocks_.size());
    std::set<const std::byte*> in_use;
    std::int64_t position = 0;
    std::int64_t entries[page_kinds] = {};
    std::int64_t tokens[page_kinds] = {};
    for (std::size_t i = 0; i < layer_.entries().size(); ++i) {
      const PageEntry& entry = layer_.entries()[i];
      EXPECT_EQ(entry.first_position, position);
      EXPECT_GT(entry.tokens, 0);
      position += entry.tokens;
      EXPECT_TRUE(in_use.insert(entry.data).second) << "a block holds two pages";
      ++entries[static_cast<int>(entry.kind)];
      tokens[static_cast<int>(entry.kind)] += entry.tokens;
    }
    for (const PageKind kind : {PageKind::Sinks, PageKind::Sealed, PageKind::Tail}) {
      EXPECT_EQ(layer_.counts().entries(kind), entries[static_cast<int>(kind)]);
      EXPECT_EQ(layer_.counts().tokens(kind), tokens[static_cast<int>(kind)]);
    }
    EXPECT_EQ(position, layer_.length());
    const EntryRange sealed = layer_.sealed_range();
    EXPECT_EQ(sealed.first, static_cast<std::size_t>(entries[static_cast<int>(PageKind::Sinks)]));
    EXPECT_EQ(sealed.size(), static_cast<std::size_t>(entries[static_cast<int>(PageKind::Sealed)]));
    EXPECT_EQ(layer_.reserved_table_bytes(), memory_.bytes);
  }
  [[nodiscard]] std::vector<std::pair<PageKind, int>> table() {
    std::vector<std::pair<PageKind, int>> rows;
    for (std::size_t i = 0; i < layer_.entries().size(); ++i)
      rows.emplace_back(layer_.entries()[i].kind, layer_.entries()[i].tokens);
    return rows;
  }

 private:
  Block new_block() {
    blocks_.push_back(std::make_unique<Owned>());
    return {&blocks_.back()->byte, &blocks_.back()->references};
  }

  CountingAllocator memory_;
  SequenceLayer layer_;
  struct Owned {
    std::byte byte{};
    std::uint32_t references = 1;
  };
  std::vector<std::unique_ptr<Owned>> blocks_;
};

using Table = std::vector<std::pair<PageKind, int>>;

TEST(SequenceLayerPlacement, TheRingHoldsRecentTokensAndOneMorePage) {
  EXPECT_EQ((TokenPlacement{64, 0, 0}.ring_blocks()), 1);
  EXPECT_EQ((TokenPlacement{64, 0, 1}.ring_blocks()), 2);
  EXPECT_EQ((TokenPlacement{64, 0, 64}.ring_blocks()), 2);
  EXPECT_EQ((TokenPlacement{64, 0, 65}.ring_blocks()), 3);
  EXPECT_EQ((TokenPlacement{64, 4, 128}.ring_blocks()), 3);
}

TEST(SequenceLayer, TokensGoToSinksThenTailThenSealedPages) {
  Layer layer({32, 4, 40});
  layer.reserve(200);
  ASSERT_TRUE(layer.append(3));
  EXPECT_EQ(layer.table(), (Table{{PageKind::Sinks, 3}}));
  ASSERT_TRUE(layer.append(1));
  EXPECT_EQ(layer.table(), (Table{{PageKind::Sinks, 4}}));
  ASSERT_TRUE(layer.append(33));
  EXPECT_EQ(layer.table(),
            (Table{{PageKind::Sinks, 4}, {PageKind::Tail, 32}, {PageKind::Tail, 1}}));
  ASSERT_TRUE(layer.append(38));
  EXPECT_EQ(
      layer.table(),
      (Table{
          {PageKind::Sinks, 4}, {PageKind::Tail, 32}, {PageKind::Tail, 32}, {PageKind::Tail, 7}}));
  ASSERT_TRUE(layer.append(1));  // 4 + 32 + 40
  EXPECT_EQ(layer.table(), (Table{{PageKind::Sinks, 4},
                                  {PageKind::Sealed, 32},
                                  {PageKind::Tail, 32},
                                  {PageKind::Tail, 8}}));
  layer.check();
}

TEST(SequenceLayer, ACutInsideASealedPageStartsANewTailBehindIt) {
  Layer layer({32, 4, 0});
  layer.reserve(4 + 3 * 32);
  ASSERT_TRUE(layer.append(4 + 3 * 32));
  layer->truncate(4 + 32 + 10);
  EXPECT_EQ(layer.table(),
            (Table{{PageKind::Sinks, 4}, {PageKind::Sealed, 32}, {PageKind::Sealed, 10}}));
  layer.check();
  ASSERT_TRUE(layer.append(32 - 10));
  EXPECT_EQ(layer.table().back(), (std::pair{PageKind::Tail, 22}));
  ASSERT_TRUE(layer.append(10));
  EXPECT_EQ(layer.table(), (Table{{PageKind::Sinks, 4},
                                  {PageKind::Sealed, 32},
                                  {PageKind::Sealed, 10},
                                  {PageKind::Sealed, 32}}));
  layer.check();
  EXPECT_FALSE(layer.append(32)) << "the page that was cut is missing";
  layer.reserve(4 + 32 + 10 + 32 + 32);
  EXPECT_TRUE(layer.append(32));
  layer.check();
}

TEST(SequenceLayer, ATruncationToNothingStartsAnew) {
  Layer layer({32, 4, 32});
  layer.reserve(150);
  for (const int cut : {0, 1, 3, 4}) {
    ASSERT_TRUE(layer.append(150 - static_cast<int>(layer->length())));
    layer->truncate(cut);
    EXPECT_EQ(layer->length(), cut);
    EXPECT_EQ(layer.table(), cut == 0 ? Table{} : (Table{{PageKind::Sinks, cut}}));
    layer.check();
  }
}

TEST(SequenceLayer, TruncatingBeyondTheEndChangesNothing) {
  Layer layer({32, 4, 32});
  layer.reserve(150);
  ASSERT_TRUE(layer.append(100));
  const Table before = layer.table();
  layer->truncate(100);
  layer->truncate(101);
  layer->truncate(std::int64_t{1} << 50);
  EXPECT_EQ(layer.table(), before);
  EXPECT_EQ(layer->length(), 100);
}

TEST(SequenceLayer, ReservesOnlyWhatATokenCountNeeds) {
  Layer layer({64, 4, 128});
  const auto missing = [&](std::int64_t length) {
    const BlockCounts counts = layer->missing_for(length);
    return std::vector<std::size_t>{counts.sinks, counts.tail, counts.sealed};
  };
  using Counts = std::vector<std::size_t>;
  EXPECT_EQ(missing(0), (Counts{0, 0, 0}));
  EXPECT_EQ(missing(1), (Counts{1, 0, 0}));
  EXPECT_EQ(missing(4), (Counts{1, 0, 0}));
  EXPECT_EQ(missing(5), (Counts{1, 1, 0}));
  EXPECT_EQ(missing(4 + 64), (Counts{1, 1, 0}));
  EXPECT_EQ(missing(4 + 65), (Counts{1, 2, 0}));
  EXPECT_EQ(missing(4 + 191), (Counts{1, 3, 0}));
  EXPECT_EQ(missing(4 + 192), (Counts{1, 3, 1}));
  EXPECT_EQ(missing(4 + 255), (Counts{1, 3, 1}));
  EXPECT_EQ(missing(4 + 256), (Counts{1, 3, 2}));
}

TEST(SequenceLayerRandom, NoBlockIsEverLostOrUsedTwice) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    Layer layer({32, random.between(0, 3) * 5, random.between(0, 100)});
    std::int64_t capacity = 0;
    for (int step = 0; step < 60; ++step) {
      const std::int64_t length = layer->length();
      switch (random.between(0, 3)) {
        case 0:
          capacity = std::max<std::int64_t>(capacity, random.between(0, 500));
          layer.reserve(capacity);
          break;
        case 1:
          layer->truncate(random.between(0, static_cast<int>(length) + 1));
          break;
        default: {
          const int room = static_cast<int>(capacity - length);
          if (room > 0) layer.append(random.between(0, room));
        }
      }
      layer.check();
    }
  }
}

TEST(SequenceLayer, MissingTableBytesAreWhatReserveAdds) {
  CountingAllocator memory;
  SequenceLayer layer({64, 4, 128}, memory.get());
  for (const std::int64_t length : {1, 300, 200, 5000}) {
    const BlockCounts missing = layer.missing_for(length);
    const std::size_t expected = memory.bytes + layer.missing_table_bytes(missing);
    ASSERT_TRUE(layer.reserve_tables(missing));
    EXPECT_EQ(memory.bytes, expected);
    EXPECT_EQ(layer.reserved_table_bytes(), expected);
  }
}

}  // namespace
}  // namespace kvtilt
