// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/page.hpp>
#include <kvtilt/cuda/attention/ring.hpp>

#include "support/emulated_threads.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::EmulatedThreads;

TEST(AttendRing, PartsOfSharedMemoryLieSideBySide) {
  using Traits = PageTraits<4, 2, 128>;
  for (const int warps : {1, 3, 4})
    for (const int stages : {2, 3})
      for (const int sequences : {1, 1024}) {
        const AttendShared shared = AttendShared::of<Traits>(warps, stages, sequences);
        const std::uint32_t rings = static_cast<std::uint32_t>(warps * stages);
        const std::uint32_t rows = static_cast<std::uint32_t>(item_rows);
        EXPECT_EQ(Traits::stage_bytes % 16, 0u) << "bulk copies";
        EXPECT_GE(shared.barriers, rings * Traits::stage_bytes);
        EXPECT_GE(Traits::stage_bytes, output_bytes(Traits::value_dim));
        EXPECT_GE(shared.units, shared.barriers + rings * 8);
        EXPECT_GE(shared.states, shared.units + rings * sizeof(RingUnit));
        EXPECT_GE(shared.outputs, shared.states + static_cast<std::uint32_t>(warps) * rows * 8);
        EXPECT_GE(shared.flag, shared.outputs + static_cast<std::uint32_t>(warps) * 4);
        EXPECT_GE(shared.work, shared.flag + 4);
        EXPECT_GE(shared.starts, shared.work + sizeof(BlockWork));
        EXPECT_GE(shared.bytes, shared.starts + static_cast<std::uint32_t>(sequences + 1) * 4);
        for (const std::uint32_t part : {shared.barriers, shared.units, shared.states, shared.work})
          EXPECT_EQ(part % 16, 0u);
      }
}

/// Blocks whose 16-byte words are numbered, and a sequence with a sink tile, three tail tiles and
/// pages in descending order.
template <class Traits>
struct Pool {
  static constexpr int pages = 80;
  static constexpr int kv_heads = 3;
  static constexpr int tail_tiles = 3;
  static constexpr int sequence = 1;
  static constexpr std::int64_t tail_start = 5000 - (tail_tiles * tile_extent - 1);
  static constexpr std::size_t tile_bytes =
      half_tile_bytes(Traits::key_dim) + half_tile_bytes(Traits::value_dim);

  std::vector<Words> memory;
  std::vector<PageSlot> table;
  AttendArguments arguments{};
  LayerView& layer = arguments.layer;

  explicit Pool(const AttendRules& rules = {}) : memory(1 << 19), table(2 * pages) {
    arguments.rules = rules;
    arguments.rules.end_position = 1 << 30;
    for (std::size_t i = 0; i < memory.size(); ++i)
      memory[i].word[0] = static_cast<std::uint32_t>(i);
    layer.page_tokens = Traits::page_tokens;
    layer.sink_tokens = 4;
    layer.ring_blocks = 2;
    const std::size_t block_tiles = std::size_t{Traits::page_tokens} / tile_extent;
    const std::size_t sealed =
        kv_heads * (Traits::page_units > 1 ? block_tiles * tile_bytes : head_bytes());
    place(PageKind::Sealed, 0, sealed);
    place(PageKind::Sinks, pages * sealed, kv_heads * tile_bytes);
    place(PageKind::Tail, pages * sealed + 2 * kv_heads * tile_bytes,
          kv_heads * block_tiles * tile_bytes);
    for (int i = 0; i < pages; ++i)
      table[static_cast<std::size_t>(pages + i)] = {1000 + 64 * i, pages - 1 - i, tokens_of(i)};
    layer.tables = table.data();
    layer.table_stride = pages - 1;
  }
  Pool(const Pool&) = delete;
  static int tokens_of(int page) { return page % 3 == 1 ? 63 - page / 2 : 64; }
  /// The segment of units `first` to last - 1 of a kv head.
  static Segment segment(int head, int first, int last) {
    Segment segment{};
    segment.slot = sequence;
    segment.sequence.first_page = 1;
    segment.sequence.length = 5000;
    segment.sequence.tail_start = tail_start;
    segment.sequence.ring_head = 1;
    segment.counts = {1, tail_tiles, pages * Traits::page_units};
    segment.rows.kv_head = head;
    segment.rows.queries = 1;
    segment.rows.length = 5000;
    segment.rows.seen = SeenRows::Causal;
    segment.first = first;
    segment.last = last;
    return segment;
  }
  static std::size_t head_bytes() {
    if constexpr (Traits::page_units > 1)
      return 0;
    else
      return Traits::head_bytes;
  }

  /// Byte offset in `memory` of word `word` of a unit.
  [[nodiscard]] std::size_t byte_of(std::size_t head, int unit, std::size_t word) const {
    const std::size_t block_tiles = std::size_t{Traits::page_tokens} / tile_extent;
    const std::size_t at = word * 16;
    if (unit == 0) return at_block(PageKind::Sinks, sequence) + head * tile_bytes + at;
    if (unit <= tail_tiles)
      return at_block(PageKind::Tail, 2 * sequence + 1) +
             byte_in_tiles(head, block_tiles, static_cast<std::size_t>(unit) - 1, at);
    const int in_pages = unit - 1 - tail_tiles;
    const std::size_t page = at_block(PageKind::Sealed, pages - 1 - in_pages / Traits::page_units);
    if constexpr (Traits::page_units > 1)
      return page + byte_in_tiles(head, block_tiles,
                                  static_cast<std::size_t>(in_pages % Traits::page_units), at);
    else
      return page + head * head_bytes() + at;
  }
  [[nodiscard]] RingUnit expected(int unit) const {
    RingUnit found{0, 4, PageKind::Sinks, false};
    int slots = tile_extent;
    if (unit > 0 && unit <= tail_tiles) {
      found = {tail_start + (unit - 1) * 16, unit == tail_tiles ? 15 : 16, PageKind::Tail, false};
    } else if (unit > tail_tiles) {
      const int in_pages = unit - 1 - tail_tiles;
      const int page = in_pages / Traits::page_units;
      slots = 64 / Traits::page_units;
      const int first = in_pages % Traits::page_units * slots;
      found = {1000 + 64 * page + first, std::clamp(tokens_of(page) - first, 0, slots),
               PageKind::Sealed, false};
    }
    const AttendRules& rules = arguments.rules;
    const std::int64_t begin = rules.window > 0 ? 5000 - rules.window : 0;
    found.special = found.tokens < slots || found.first_position < begin ||
                    found.first_position + slots > 5000 || rules.soft_cap > 0;
    return found;
  }

 private:
  void place(PageKind kind, std::size_t at, std::size_t bytes) {
    layer.pool[static_cast<int>(kind)] = reinterpret_cast<std::byte*>(memory.data()) + at;
    layer.block_bytes[static_cast<int>(kind)] = static_cast<std::int64_t>(bytes);
  }
  [[nodiscard]] std::size_t at_block(PageKind kind, int index) const {
    return static_cast<std::size_t>(layer.block(kind, index) -
                                    reinterpret_cast<const std::byte*>(memory.data()));
  }
  /// In a block, the keys of all tiles of a head precede its values.
  static std::size_t byte_in_tiles(std::size_t head, std::size_t tiles, std::size_t tile,
                                   std::size_t at) {
    const std::size_t keys = half_tile_bytes(Traits::key_dim);
    const std::size_t values = half_tile_bytes(Traits::value_dim);
    return head * tiles * (keys + values) +
           (at < keys ? tile * keys + at : tiles * keys + tile * values + at - keys);
  }
};

template <class Traits>
void expect_unit(const Pool<Traits>& pool, const Segment& segment, int unit,
                 const UnitRing<Traits>& ring, EmulatedThreads& threads, const std::byte* data) {
  const RingUnit expected = pool.expected(unit);
  const int lane = threads.lane();
  EXPECT_EQ(ring.is_plain(), expected.kind == PageKind::Sealed && !expected.special)
      << "unit " << unit;
  if (!ring.is_plain()) {
    const RingUnit taken = ring.taken(threads);
    EXPECT_EQ(taken.first_position, expected.first_position) << "unit " << unit;
    EXPECT_EQ(taken.tokens, expected.tokens) << "unit " << unit;
    EXPECT_EQ(taken.kind, expected.kind) << "unit " << unit;
    EXPECT_EQ(taken.special, expected.special) << "unit " << unit;
  }
  const bool tile = unit <= Pool<Traits>::tail_tiles;
  for (std::size_t word = static_cast<std::size_t>(lane);
       word < (tile ? Pool<Traits>::tile_bytes : Traits::unit_bytes) / 16; word += 32) {
    std::uint32_t number = 0;
    std::memcpy(&number, data + word * 16, sizeof number);
    ASSERT_EQ(number, pool.byte_of(static_cast<std::size_t>(segment.rows.kv_head), unit, word) / 16)
        << "unit " << unit << ", word " << word;
  }
}

/// Two warps take each segment's units alternately. A unit's stage is its warp's until released; so
/// is the free stage between segments, which the test overwrites.
template <class Traits>
void expect_units_in_order(int stages, const std::vector<Segment>& segments,
                           const AttendRules& rules = {}) {
  const Pool<Traits> pool(rules);
  const AttendShared shared = AttendShared::of<Traits>(2, stages, 1);
  test::emulate(1, 64, shared.bytes, [&](EmulatedThreads& threads) {
    UnitRing<Traits> ring(threads, shared, pool.arguments, stages);
    if (threads.warp() == 1) UnitRing<Traits>::prepare(threads, shared, stages);
    threads.sync();
    const auto units_of = [&](const Segment& segment) {
      return (segment.last - segment.first - threads.warp() + 1) / 2;
    };
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const Segment& segment = segments[i];
      const std::uint32_t before = ring.free_stage();
      ring.enter(threads, segment);
      ring.fill(threads);
      if (i > 0 && units_of(segments[i - 1]) >= stages - 1 && units_of(segment) >= stages - 1) {
        EXPECT_EQ(ring.free_stage(), before) << "all but one stage were full";
      }
      ring.follow(i + 1 < segments.size() ? &segments[i + 1] : nullptr);
      for (int unit = segment.first + threads.warp(); unit < segment.last; unit += 2) {
        ring.fetch(threads);
        const std::byte* data = ring.take(threads);
        expect_unit(pool, segment, unit, ring, threads, data);
        ring.release(threads);
      }
      std::byte* free = threads.shared() + ring.free_stage();
      for (std::uint32_t at = static_cast<std::uint32_t>(threads.lane()); at < Traits::stage_bytes;
           at += 32)
        free[at] = std::byte{0xff};
      threads.sync();
    }
  });
}

TEST(AttendRing, UnitsArriveInOrder) {
  for (const int stages : {2, 3, 4})
    for (const int count : {0, 1, 2, 3, 9, 13}) {
      using Pages = PageTraits<4, 2, 64>;
      expect_units_in_order<Pages>(stages, {Pool<Pages>::segment(0, 0, count)});
      expect_units_in_order<Pages>(stages, {Pool<Pages>::segment(1, 13 - count, 13)});
      using Large = PageTraits<8, 8, 128>;
      expect_units_in_order<Large>(stages, {Pool<Large>::segment(2, 0, count)});
      using Halves = HalfTraits<64, 32>;
      expect_units_in_order<Halves>(stages, {Pool<Halves>::segment(1, 3, 3 + 2 * count)});
    }
}

TEST(AttendRing, RunsAheadIntoTheSegmentsThatFollow) {
  using Pages = PageTraits<4, 2, 64>;
  using Halves = HalfTraits<64, 32>;
  const auto cut = [](const std::vector<int>& ends) {
    std::vector<Segment> segments;
    for (std::size_t i = 0; i + 1 < ends.size(); ++i)
      segments.push_back(Pool<Pages>::segment(static_cast<int>(i) % 3, ends[i], ends[i + 1]));
    return segments;
  };
  for (const int stages : {2, 3, 4})
    for (const std::vector<int>& ends : std::vector<std::vector<int>>{
             {0, 5, 9, 13}, {0, 1, 2, 3, 4, 5}, {2, 3, 5, 6, 13}, {0, 4, 6}}) {
      expect_units_in_order<Pages>(stages, cut(ends));
      std::vector<Segment> halves = cut(ends);
      for (Segment& segment : halves) segment.counts.page_units *= Halves::page_units;
      expect_units_in_order<Halves>(stages, halves);
    }
}

TEST(AttendRing, SpecialUnitsAreToldFromPlainOnes) {
  using Pages = PageTraits<4, 2, 64>;
  using Halves = HalfTraits<64, 32>;
  AttendRules window;
  window.window = 5000 - (1000 + 3 * 64 + 20);  // begins inside a page
  AttendRules capped;
  capped.soft_cap = 30;
  for (const AttendRules& rules : {window, capped}) {
    expect_units_in_order<Pages>(2, {Pool<Pages>::segment(0, 0, 13)}, rules);
    expect_units_in_order<Halves>(2, {Pool<Halves>::segment(0, 0, 40)}, rules);
  }
}

/// Each lane looks up one of 32 units; for more of them the lookup repeats.
TEST(AttendRing, MoreUnitsThanLanes) {
  using Pages = PageTraits<4, 2, 64>;
  constexpr int all = Pool<Pages>::pages + 1 + Pool<Pages>::tail_tiles;
  for (const int stages : {2, 4})
    expect_units_in_order<Pages>(stages,
                                 {Pool<Pages>::segment(0, 0, 40), Pool<Pages>::segment(1, 0, all)});
  using Halves = HalfTraits<64, 32>;
  expect_units_in_order<Halves>(3, {Pool<Halves>::segment(0, 0, 4 * all - 20)});
}

TEST(AttendRing, StagesHoldEveryKindOfUnit) {
  EXPECT_EQ((PageTraits<2, 2, 128>::stage_bytes), 16u * 256 * 2) << "a tile is more than a page";
  EXPECT_EQ((PageTraits<8, 8, 128>::stage_bytes), (PageTraits<8, 8, 128>::unit_bytes));
}

}  // namespace
}  // namespace kvtilt::cuda
