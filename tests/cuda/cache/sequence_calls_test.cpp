// SPDX-License-Identifier: MIT
// That the calls do to tables what SequenceBook does to its own: sequence_book_test.cpp.
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
  EXPECT_EQ(cache.storage(0).states[1].page_capacity, 3);
  EXPECT_EQ(cache.storage(0).table(1)[1].page, 4);
  EXPECT_EQ(cache.storage(0).table(1)[2].page, 9);
  EXPECT_EQ(cache.storage(2).states[1].page_capacity, 2);
  EXPECT_EQ(cache.storage(0).states[0].page_capacity, 0);
  cache.give(1, {{0, 0, 100}});
  EXPECT_EQ(cache.storage(0).states[1].page_capacity, 3);
  EXPECT_EQ(cache.record().code, static_cast<std::uint32_t>(ErrorCode::OutOfCapacity));
}

TEST(SequenceCalls, ARefusedTruncationChangesNoLayer) {
  EmulatedCache cache = make_cache();
  cache.give(0, {{0, 0, 15}, {2, 0, 4}});
  for (const int layer : {0, 2}) cache.append(0, layer, 400);
  cache.truncate(0, 100);
  EXPECT_EQ(cache.storage(0).states[0].length, 400);
  EXPECT_EQ(cache.record().code, static_cast<std::uint32_t>(ErrorCode::InvalidArgument));
  EXPECT_EQ(cache.record().layer, 2);
  EXPECT_EQ(cache.record().count, 1u);
  cache.forget_record();
  cache.truncate(0, 380);
  EXPECT_EQ(cache.storage(0).states[0].length, 380);
  EXPECT_EQ(cache.storage(2).states[0].length, 380);
  EXPECT_EQ(cache.record().code, 0u);
}

TEST(SequenceCalls, SequencesOfABatchAreCutToTheirOwnLengths) {
  EmulatedCache cache = make_cache();
  for (std::uint32_t slot = 0; slot < 3; ++slot) {
    const auto page = static_cast<std::int32_t>(slot) * 15;
    cache.give(slot, {{0, page, 15}, {2, page, 4}});
    for (const int layer : {0, 2}) cache.append(slot, layer, 400);
  }
  const auto length = [&](int slot) {
    EXPECT_EQ(cache.storage(0).states[slot].length, cache.storage(2).states[slot].length);
    return cache.storage(0).states[slot].length;
  };
  cache.truncate(std::vector<std::uint32_t>{2, 0}, {390, 385});
  EXPECT_EQ(length(0), 385);
  EXPECT_EQ(length(1), 400);
  EXPECT_EQ(length(2), 390);
  EXPECT_EQ(cache.record().code, 0u);
  // What cannot be is left alone, sequence by sequence.
  cache.truncate({0, 1, 2}, {-1, 100, 389});
  EXPECT_EQ(length(0), 385);
  EXPECT_EQ(length(1), 400);
  EXPECT_EQ(length(2), 389);
  EXPECT_EQ(cache.record().code, static_cast<std::uint32_t>(ErrorCode::InvalidArgument));
  EXPECT_EQ(cache.record().count, 2u);
}

TEST(SequenceCalls, AForkCopiesTheBlocksInUse) {
  EmulatedCache cache = make_cache();
  cache.give(0, {{0, 0, 15}, {2, 0, 4}});
  for (const int layer : {0, 2}) cache.append(0, layer, 100);
  for (const int layer : {0, 2}) {
    const LayerStorage& storage = cache.storage(layer);
    for (int i = 0; i < storage.ring_blocks; ++i)
      std::memset(storage.tail(0, 0, i), 10 + i, static_cast<std::size_t>(storage.block_bytes[2]));
    std::memset(storage.sinks(0), 9, static_cast<std::size_t>(storage.block_bytes[0]));
  }
  ForkRequest request{};
  request.from = 0;
  request.to = 2;
  request.length = 100;
  request.pages[0] = request.pages[2] = 1;
  cache.fork(request);
  ASSERT_EQ(cache.record().code, 0u);
  for (const int layer : {0, 2}) {
    const LayerStorage& storage = cache.storage(layer);
    const SequenceState& state = storage.states[2];
    EXPECT_EQ(state.length, 100);
    EXPECT_EQ(storage.table(2)[0].page, 0);
    EXPECT_EQ(storage.states[0].shared_end, 1);
    EXPECT_EQ(tail_blocks(storage, state), 2);
    EXPECT_EQ(std::memcmp(storage.sinks(0), storage.sinks(2),
                          static_cast<std::size_t>(storage.block_bytes[0])),
              0);
    for (int i = 0; i < storage.ring_blocks; ++i)
      EXPECT_EQ(
          std::memcmp(storage.tail(0, state.ring_head, i), storage.tail(2, state.ring_head, i),
                      static_cast<std::size_t>(storage.block_bytes[2])) == 0,
          i < 2);
  }
}

}  // namespace
}  // namespace kvtilt::cuda
