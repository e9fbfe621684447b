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
        EXPECT_GE(shared.slots, shared.barriers + rings * 8);
        // Outputs of the warps lie where the rings were.
        EXPECT_GE(shared.barriers, static_cast<std::uint32_t>(warps) * rows *
                                       (128 + AttendShared::output_padding) * 4);
        EXPECT_GE(shared.states, shared.slots + rings * sizeof(PageSlot));
        EXPECT_GE(shared.flag, shared.states + static_cast<std::uint32_t>(warps) * rows * 8);
        EXPECT_GE(shared.segment, shared.flag + 4);
        EXPECT_GE(shared.starts, shared.segment + AttendShared::segment_bytes);
        EXPECT_GE(shared.bytes, shared.starts + static_cast<std::uint32_t>(sequences + 2) * 4);
        for (const std::uint32_t part :
             {shared.barriers, shared.slots, shared.states, shared.segment})
          EXPECT_EQ(part % 16, 0u);
      }
}

/// A pool whose 16-byte words are numbered, and a table that reads it backwards.
template <class Traits>
struct Pool {
  static constexpr int pages = 9;
  static constexpr std::size_t head_offset = 64;
  std::vector<Words> memory;
  std::vector<PageSlot> table;
  LayerStorage layer{};

  Pool() {
    const std::size_t block = head_offset + page_bytes();
    memory.resize(pages * block / sizeof(Words));
    for (std::size_t i = 0; i < memory.size(); ++i)
      memory[i].word[0] = static_cast<std::uint32_t>(i);
    layer.pool[static_cast<int>(PageKind::Sealed)] = reinterpret_cast<std::byte*>(memory.data());
    layer.block_bytes[static_cast<int>(PageKind::Sealed)] = static_cast<std::int64_t>(block);
    for (int i = 0; i < pages; ++i) table.push_back({1000 + 64 * i, pages - 1 - i, 64 - i});
  }
  static std::size_t page_bytes() { return std::size_t{Traits::page_units} * Traits::stage_bytes; }

  /// Byte of word `word` of a unit in its page: keys of all its tiles lie before the values.
  static std::size_t byte_in_page(int unit, std::size_t word) {
    const std::size_t tile = static_cast<std::size_t>(unit % Traits::page_units);
    const std::size_t at = word * 16;
    if constexpr (Traits::page_units == 1)
      return at;
    else
      return at < Traits::key_bytes ? tile * Traits::key_bytes + at
                                    : Traits::page_units * Traits::key_bytes +
                                          tile * Traits::value_bytes + at - Traits::key_bytes;
  }
};

/// Two warps take every other unit, in order, and what they get is theirs until they release it.
template <class Traits>
void expect_units_in_order(int stages, int first_unit, int end) {
  const Pool<Traits> pool;
  const AttendShared shared = AttendShared::of<Traits>(2, stages, 1);
  test::emulate(1, 64, shared.bytes, [&](EmulatedThreads& threads) {
    PageRing<Traits> ring(threads, shared, stages);
    typename PageRing<Traits>::Source source{};
    source.layer = &pool.layer;
    source.table = pool.table.data();
    source.head_offset = Pool<Traits>::head_offset;
    source.next = first_unit + threads.warp();
    source.end = end;
    source.stride = 2;
    source.load_slots(threads);
    EXPECT_EQ(ring.stages(), stages);
    for (int stage = 1; stage < ring.stages(); ++stage) ring.fetch(threads, source);
    for (int unit = first_unit + threads.warp(); unit < end; unit += 2) {
      ring.fetch(threads, source);
      PageSlot slot{};
      const std::byte* data = ring.take(threads, slot);
      const PageSlot& expected = pool.table[static_cast<std::size_t>(unit / Traits::page_units)];
      EXPECT_EQ(slot.page, expected.page) << "unit " << unit;
      EXPECT_EQ(slot.first_position, expected.first_position);
      EXPECT_EQ(slot.tokens, expected.tokens);
      for (std::size_t word = static_cast<std::size_t>(threads.lane());
           word < Traits::stage_bytes / 16; word += 32) {
        const std::size_t byte =
            static_cast<std::size_t>(slot.page) * (Pool<Traits>::page_bytes() + 64) + 64 +
            Pool<Traits>::byte_in_page(unit, word);
        std::uint32_t number = 0;
        std::memcpy(&number, data + word * 16, sizeof number);
        ASSERT_EQ(number, byte / 16) << "unit " << unit << ", word " << word;
      }
      ring.release(threads);
    }
    EXPECT_GE(source.next, end) << "all was fetched";
  });
}

TEST(AttendRing, UnitsArriveInOrder) {
  for (const int stages : {2, 3, 4})
    for (const int count : {0, 1, 2, 3, 9}) {
      expect_units_in_order<PageTraits<4, 2, 64>>(stages, 0, count);
      expect_units_in_order<PageTraits<4, 2, 64>>(stages, 9 - count, 9);
      expect_units_in_order<HalfTraits<64, 32>>(stages, 3, 3 + 3 * count);
    }
}

}  // namespace
}  // namespace kvtilt::cuda
