// SPDX-License-Identifier: MIT
// sequence_book_test.cpp compares the tables with SequenceBook's.
#include <kvtilt/cuda/cache/sequence_calls.hpp>
#include <kvtilt/quant/presets.hpp>

#include "support/emulated_cache.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::EmulatedCache;

EmulatedCache make_cache() {
  CacheShape shape;
  shape.layers = {{2, 16, 32, 0}, {}, {1, 16, 16, 40}};
  CacheOptions options;
  options.page_tokens = 32;
  options.recent_tokens = 40;
  options.max_sequences = 3;
  options.token_capacity = 640;
  EmulatedCache cache(shape, Plan::uniform(shape, presets::k4v2), options);
  for (std::uint32_t slot = 0; slot < 3; ++slot) cache.reset(slot);
  return cache;
}

TEST(SequenceCalls, PagesArriveInOrder) {
  EmulatedCache cache = make_cache();
  cache.give(1, {{0, 3, 2}, {0, 9, 1}, {2, 0, 2}});
  EXPECT_EQ(cache.view(0).states[1].page_capacity, 3);
  EXPECT_EQ(cache.view(0).table(1)[1].page, 4);
  EXPECT_EQ(cache.view(0).table(1)[2].page, 9);
  EXPECT_EQ(cache.view(2).states[1].page_capacity, 2);
  EXPECT_EQ(cache.view(0).states[0].page_capacity, 0);
  cache.give(1, {{0, 0, 100}});
  EXPECT_EQ(cache.view(0).states[1].page_capacity, 3);
  EXPECT_EQ(cache.record().fault, cuda::DeviceFault::TableFull);
}

TEST(SequenceCalls, ASlotStartsWithoutTheCountsOfAMisorderedAppend) {
  EmulatedCache cache = make_cache();
  for (const int layer : {0, 2}) cache.view(layer).arrivals[1] = 3;
  cache.reset(1);
  for (const int layer : {0, 2}) EXPECT_EQ(cache.view(layer).arrivals[1], 0u) << layer;
}

TEST(SequenceCalls, ARefusedTruncationChangesNoLayer) {
  EmulatedCache cache = make_cache();
  cache.give(0, {{0, 0, 15}, {2, 0, 4}});
  for (const int layer : {0, 2}) cache.append(0, layer, 400);
  cache.truncate(0, 100);
  EXPECT_EQ(cache.view(0).states[0].length, 400);
  EXPECT_EQ(cache.record().fault, cuda::DeviceFault::TruncationRefused);
  EXPECT_EQ(cache.record().layer, 2);
  EXPECT_EQ(cache.record().count, 1u);
  cache.forget_record();
  cache.truncate(0, 380);
  EXPECT_EQ(cache.view(0).states[0].length, 380);
  EXPECT_EQ(cache.view(2).states[0].length, 380);
  EXPECT_EQ(cache.record().fault, cuda::DeviceFault::None);
}

TEST(SequenceCalls, SequencesOfABatchAreCutToTheirOwnLengths) {
  EmulatedCache cache = make_cache();
  for (std::uint32_t slot = 0; slot < 3; ++slot) {
    const auto page = static_cast<std::int32_t>(slot) * 15;
    cache.give(slot, {{0, page, 15}, {2, page, 4}});
    for (const int layer : {0, 2}) cache.append(slot, layer, 400);
  }
  const auto length = [&](int slot) {
    EXPECT_EQ(cache.view(0).states[slot].length, cache.view(2).states[slot].length);
    return cache.view(0).states[slot].length;
  };
  cache.truncate(std::vector<std::uint32_t>{2, 0}, {390, 385});
  EXPECT_EQ(length(0), 385);
  EXPECT_EQ(length(1), 400);
  EXPECT_EQ(length(2), 390);
  EXPECT_EQ(cache.record().fault, cuda::DeviceFault::None);
  // Slot -1 is padding.
  cache.truncate({static_cast<std::uint32_t>(-1), 0}, {0, 384});
  EXPECT_EQ(length(0), 384);
  EXPECT_EQ(length(1), 400);
  EXPECT_EQ(cache.record().fault, cuda::DeviceFault::None);
  // Invalid lengths leave only their own sequence unchanged.
  cache.truncate({0, 1, 2}, {-1, 100, 389});
  EXPECT_EQ(length(0), 384);
  EXPECT_EQ(length(1), 400);
  EXPECT_EQ(length(2), 389);
  EXPECT_EQ(cache.record().fault, cuda::DeviceFault::TruncationRefused);
  EXPECT_EQ(cache.record().count, 2u);
}

ForkLayer fork_layer(std::int64_t tail_start, const std::vector<PageSlot>& table) {
  SequenceState state{};
  state.tail_start = tail_start;
  std::uint64_t pages = 0;
  for (std::size_t i = 0; i < table.size(); ++i)
    pages += ForkLayer::page_term(static_cast<std::int32_t>(i), table[i]);
  return {state, pages};
}

TEST(SequenceCalls, AForkCopiesTheBlocksInUse) {
  EmulatedCache cache = make_cache();
  cache.give(0, {{0, 0, 15}, {2, 0, 4}});
  for (const int layer : {0, 2}) cache.append(0, layer, 100);
  for (const int layer : {0, 2}) {
    const LayerView& view = cache.view(layer);
    for (int i = 0; i < view.ring_blocks; ++i)
      std::memset(view.tail(0, 0, i), 10 + i, static_cast<std::size_t>(view.block_bytes[2]));
    std::memset(view.sinks(0), 9, static_cast<std::size_t>(view.block_bytes[0]));
  }
  ForkRequest request{};
  request.from = 0;
  request.to = 2;
  request.length = 100;
  request.layers[0] = request.layers[2] = fork_layer(36, {{4, 0, 32}});
  cache.fork(request);
  ASSERT_EQ(cache.record().fault, cuda::DeviceFault::None);
  for (const int layer : {0, 2}) {
    const LayerView& view = cache.view(layer);
    const SequenceState& state = view.states[2];
    EXPECT_EQ(state.length, 100);
    EXPECT_EQ(view.table(2)[0].page, 0);
    EXPECT_EQ(view.states[0].shared_end, 1);
    EXPECT_EQ(tail_blocks(view, state), 2);
    EXPECT_EQ(
        std::memcmp(view.sinks(0), view.sinks(2), static_cast<std::size_t>(view.block_bytes[0])),
        0);
    for (int i = 0; i < view.ring_blocks; ++i)
      EXPECT_EQ(std::memcmp(view.tail(0, state.ring_head, i), view.tail(2, state.ring_head, i),
                            static_cast<std::size_t>(view.block_bytes[2])) == 0,
                i < 2);
  }
}

TEST(SequenceCalls, AForkIsOfWhatTheHostKnows) {
  const auto forks = [](std::int64_t length, const ForkLayer& first, const ForkLayer& second) {
    EmulatedCache cache = make_cache();
    cache.give(0, {{0, 0, 15}, {2, 0, 4}});
    for (const int layer : {0, 2}) cache.append(0, layer, 300);
    ForkRequest request{};
    request.from = 0;
    request.to = 2;
    request.length = length;
    request.layers[0] = first;
    request.layers[2] = second;
    cache.fork(request);
    EXPECT_EQ(cache.view(0).states[2].length, cache.view(2).states[2].length);
    return cache.record().fault == cuda::DeviceFault::None && cache.view(2).states[2].length == 300;
  };
  EmulatedCache known = make_cache();
  known.give(0, {{0, 0, 15}, {2, 0, 4}});
  std::vector<PageSlot> tables[2];
  std::int64_t tail_start = 0;
  for (const int layer : {0, 2}) {
    known.append(0, layer, 300);
    const SequenceState& state = known.view(layer).states[0];
    tail_start = state.tail_start;
    tables[layer / 2].assign(known.view(layer).table(0) + state.first_page,
                             known.view(layer).table(0) + state.page_end);
  }
  ASSERT_GE(tables[0].size(), 7u);
  ASSERT_GE(tables[1].size(), 2u);
  const ForkLayer first = fork_layer(tail_start, tables[0]);
  const ForkLayer second = fork_layer(tail_start, tables[1]);
  EXPECT_TRUE(forks(300, first, second));
  EXPECT_FALSE(forks(301, first, second));
  EXPECT_FALSE(forks(300, first, first));
  for (const std::int64_t tail : {tail_start + 1, tail_start + (1 << 17)}) {
    EXPECT_FALSE(forks(300, fork_layer(tail, tables[0]), second));
    EXPECT_FALSE(forks(300, first, fork_layer(tail, tables[1])));
  }
  for (const int layer : {0, 1})
    for (std::size_t i = 0; i < tables[layer].size(); ++i) {
      const auto with = [&](auto&& change) {
        std::vector<PageSlot> table = tables[layer];
        change(table);
        const ForkLayer other = fork_layer(tail_start, table);
        return layer == 0 ? forks(300, other, second) : forks(300, first, other);
      };
      EXPECT_FALSE(with([&](std::vector<PageSlot>& table) { table[i].page += 1; }));
      EXPECT_FALSE(with([&](std::vector<PageSlot>& table) { table[i].tokens -= 1; }));
      EXPECT_FALSE(with([&](std::vector<PageSlot>& table) { table[i].first_position += 1; }));
      EXPECT_FALSE(with([&](std::vector<PageSlot>& table) { table.erase(table.begin() + 1); }));
      const std::size_t next = (i + 1) % tables[layer].size();
      EXPECT_FALSE(
          with([&](std::vector<PageSlot>& table) { std::swap(table[i].page, table[next].page); }));
    }
}

/// With and without a rest after the last full round.
TEST(SequenceCalls, BlocksAreCopiedWhole) {
  for (const std::int64_t bytes : {0, 16, 496, 512, 2048, 2064, 5136}) {
    const std::size_t size = static_cast<std::size_t>(bytes);
    std::vector<Words> from(size / 16 + 1);
    std::vector<Words> to(size / 16 + 1);
    for (std::size_t i = 0; i <= size / 16; ++i)
      from[i].word[0] = static_cast<std::uint32_t>(i + 1);
    test::emulate(1, 32, 0, [&](test::EmulatedThreads& threads) {
      copy_block(threads, reinterpret_cast<const std::byte*>(from.data()),
                 reinterpret_cast<std::byte*>(to.data()), bytes);
    });
    EXPECT_EQ(std::memcmp(from.data(), to.data(), size), 0) << bytes;
    EXPECT_EQ(to.back().word[0], 0u) << bytes;
  }
}

}  // namespace
}  // namespace kvtilt::cuda
