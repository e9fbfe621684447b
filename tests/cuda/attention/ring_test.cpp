// SPDX-License-Identifier: MIT
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
        EXPECT_GE(shared.units, shared.barriers + rings * 8);
        // Outputs of the warps lie where the rings were.
        EXPECT_GE(shared.barriers, static_cast<std::uint32_t>(warps) * rows *
                                       (128 + AttendShared::output_padding) * 4);
        EXPECT_GE(shared.states, shared.units + rings * sizeof(RingUnit));
        EXPECT_GE(shared.flag, shared.states + static_cast<std::uint32_t>(warps) * rows * 8);
        EXPECT_GE(shared.work, shared.flag + 4);
        EXPECT_GE(shared.starts, shared.work + sizeof(BlockWork));
        EXPECT_GE(shared.bytes, shared.starts + static_cast<std::uint32_t>(sequences + 1) * 4);
        for (const std::uint32_t part : {shared.barriers, shared.units, shared.states, shared.work})
          EXPECT_EQ(part % 16, 0u);
      }
}

/// Blocks whose 16-byte words are numbered, and a sequence with a sink tile, three tail tiles and
/// pages that its table reads backwards.
template <class Traits>
struct Pool {
  static constexpr int pages = 9;
  static constexpr int kv_heads = 3;
  static constexpr int tail_tiles = 3;
  static constexpr int sequence = 1;
  static constexpr std::size_t tile_bytes =
      half_tile_bytes(Traits::key_dim) + half_tile_bytes(Traits::value_dim);

  std::vector<Words> memory;
  std::vector<PageSlot> table;
  LayerStorage layer{};
  Segment segment{};

  explicit Pool(int head) : memory(1 << 18), table(2 * pages) {
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
      table[static_cast<std::size_t>(pages + i)] = {1000 + 64 * i, pages - 1 - i, 64 - i};
    layer.tables = table.data();
    layer.table_stride = pages - 1;
    segment.slot = sequence;
    segment.sequence.first_page = 1;
    segment.sequence.length = 5000;
    segment.sequence.tail_start = 5000 - (tail_tiles * tile_extent - 1);
    segment.sequence.ring_head = 1;
    segment.counts = {1, tail_tiles, pages * Traits::page_units};
    segment.rows.kv_head = head;
  }
  static std::size_t head_bytes() {
    if constexpr (Traits::page_units > 1)
      return 0;
    else
      return Traits::head_bytes;
  }

  /// Byte of word `word` of a unit.
  [[nodiscard]] std::size_t byte_of(int unit, std::size_t word) const {
    const std::size_t head = static_cast<std::size_t>(segment.rows.kv_head);
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
    if (unit == 0) return {0, 4, 1};
    if (unit <= tail_tiles)
      return {segment.sequence.tail_start + (unit - 1) * 16, unit == tail_tiles ? 15 : 16, 0};
    const int in_pages = unit - 1 - tail_tiles;
    const int page = in_pages / Traits::page_units;
    const int slots = 64 / Traits::page_units;
    const int first = in_pages % Traits::page_units * slots;
    return {1000 + 64 * page + first, std::min(slots, 64 - page - first), 0};
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
  /// Keys of all tiles of a head lie before the values.
  static std::size_t byte_in_tiles(std::size_t head, std::size_t tiles, std::size_t tile,
                                   std::size_t at) {
    const std::size_t keys = half_tile_bytes(Traits::key_dim);
    const std::size_t values = half_tile_bytes(Traits::value_dim);
    return head * tiles * (keys + values) +
           (at < keys ? tile * keys + at : tiles * keys + tile * values + at - keys);
  }
};

/// Two warps take every other unit, in order, and what they get is theirs until they release it.
template <class Traits>
void expect_units_in_order(int stages, int first_unit, int last) {
  Pool<Traits> pool(first_unit % Pool<Traits>::kv_heads);
  pool.segment.first = first_unit;
  pool.segment.last = last;
  const AttendShared shared = AttendShared::of<Traits>(2, stages, 1);
  test::emulate(1, 64, shared.bytes, [&](EmulatedThreads& threads) {
    UnitRing<Traits> ring(threads, shared, stages);
    if (threads.warp() == 1) UnitRing<Traits>::prepare(threads, shared, stages);
    threads.sync();
    typename UnitRing<Traits>::Source source{&pool.layer, &pool.segment,
                                             first_unit + threads.warp(), 2};
    source.load_slots(threads);
    EXPECT_EQ(ring.stages(), stages);
    for (int stage = 1; stage < ring.stages(); ++stage) ring.fetch(threads, source);
    for (int unit = first_unit + threads.warp(); unit < last; unit += 2) {
      ring.fetch(threads, source);
      RingUnit taken{};
      const std::byte* data = ring.take(threads, taken);
      const RingUnit expected = pool.expected(unit);
      EXPECT_EQ(taken.first_position, expected.first_position) << "unit " << unit;
      EXPECT_EQ(taken.tokens, expected.tokens) << "unit " << unit;
      EXPECT_EQ(taken.sink, expected.sink) << "unit " << unit;
      const bool tile = unit <= Pool<Traits>::tail_tiles;
      for (std::size_t word = static_cast<std::size_t>(threads.lane());
           word < (tile ? Pool<Traits>::tile_bytes : Traits::unit_bytes) / 16; word += 32) {
        std::uint32_t number = 0;
        std::memcpy(&number, data + word * 16, sizeof number);
        ASSERT_EQ(number, pool.byte_of(unit, word) / 16) << "unit " << unit << ", word " << word;
      }
      ring.release(threads);
    }
    EXPECT_GE(source.next, last) << "all was fetched";
  });
}

TEST(AttendRing, UnitsArriveInOrder) {
  for (const int stages : {2, 3, 4})
    for (const int count : {0, 1, 2, 3, 9, 13}) {
      expect_units_in_order<PageTraits<4, 2, 64>>(stages, 0, count);
      expect_units_in_order<PageTraits<4, 2, 64>>(stages, 13 - count, 13);
      expect_units_in_order<PageTraits<8, 8, 128>>(stages, 0, count);
      expect_units_in_order<HalfTraits<64, 32>>(stages, 3, 3 + 2 * count);
    }
}

TEST(AttendRing, StagesHoldEveryKindOfUnit) {
  EXPECT_EQ((PageTraits<2, 2, 128>::stage_bytes), 16u * 256 * 2) << "a tile is more than a page";
  EXPECT_EQ((PageTraits<8, 8, 128>::stage_bytes), (PageTraits<8, 8, 128>::unit_bytes));
}

}  // namespace
}  // namespace kvtilt::cuda
