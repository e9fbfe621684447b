// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/sequence_book.hpp>
#include <kvtilt/quant/presets.hpp>

#include "support/caches.hpp"
#include "support/sequence_trio.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::Random;
using test::small_options;
using test::small_shape;
using test::Trio;
using testing::HasSubstr;

struct Named {
  SequenceId ours;
  SequenceId theirs;
};

void append(Trio& trio, const Named& id, int layer, std::int32_t tokens) {
  const test::Rows<float> rows(tokens, 1, 16);
  const SequenceId ids[] = {id.ours};
  const std::int32_t counts[] = {tokens};
  const Status ours = trio.book.check_append(ids, layer, counts);
  (void)trio.cpu.reserve(id.theirs, trio.cpu.length(id.theirs, layer).value() + tokens);
  if (!ours.ok()) {
    EXPECT_EQ(ours.code(), ErrorCode::OutOfCapacity);
    return;
  }
  trio.book.note_appended(ids, layer, counts);
  trio.device.append(id.ours.slot, layer, tokens);
  KVTILT_EXPECT_OK(trio.cpu.append(id.theirs, layer, rows.view(), rows.view()));
}

/// Compares the book with the device, entry by entry, and with the CPU cache.
void expect_equal(const Trio& trio, const Named& id) {
  for (const int layer : {0, 2}) {
    const SequenceState& state = trio.book.state(id.ours.slot, layer);
    const SequenceState& device = trio.device.view(layer).states[id.ours.slot];
    EXPECT_EQ(state.length, device.length);
    EXPECT_EQ(state.tail_start, device.tail_start);
    EXPECT_EQ(state.first_kept, device.first_kept);
    EXPECT_EQ(state.page_end, device.page_end);
    EXPECT_EQ(state.page_capacity, device.page_capacity);
    EXPECT_EQ(state.shared_end, device.shared_end);
    EXPECT_EQ(state.ring_head, device.ring_head);
    const std::span<const PageSlot> table = trio.book.table(id.ours.slot, layer);
    ASSERT_EQ(table.size(), static_cast<std::size_t>(state.page_capacity));
    for (std::size_t i = 0; i < table.size(); ++i)
      EXPECT_EQ(table[i].page,
                trio.device.view(layer).table(static_cast<int>(id.ours.slot))[i].page);

    const kvtilt::LayerView view = trio.cpu.view(id.theirs, layer).value();
    EXPECT_EQ(view.length, state.length);
    EXPECT_EQ(view.first_kept, state.first_kept);
    std::int32_t entry = state.first_page;
    for (std::int32_t page = 0; page < view.page_count; ++page) {
      if (view.pages[page].kind != PageKind::Sealed) continue;
      ASSERT_LT(entry, state.page_end);
      EXPECT_EQ(table[static_cast<std::size_t>(entry)].first_position,
                view.pages[page].first_position);
      EXPECT_EQ(table[static_cast<std::size_t>(entry)].tokens, view.pages[page].tokens);
      ++entry;
    }
    EXPECT_EQ(entry, state.page_end);
  }
}

/// Every page is either free, or held or dropped as often as its count says; writable pages are held
/// once.
void expect_sound(const Trio& trio, const std::vector<Named>& open) {
  for (const int layer : {0, 2}) {
    const PageList& pages = trio.book.pages(layer);
    std::map<std::int32_t, std::uint32_t> held;
    for (const Named& id : open) {
      for (const PageSlot& entry : trio.book.table(id.ours.slot, layer)) ++held[entry.page];
      for (const PageSlot& entry : trio.book.dropped(id.ours.slot, layer)) ++held[entry.page];
    }
    EXPECT_EQ(static_cast<std::int64_t>(held.size()) + pages.free_pages(), pages.pages());
    for (const auto& [page, count] : held) EXPECT_EQ(pages.references(page), count);
    for (const Named& id : open) {
      const SequenceState& state = trio.book.state(id.ours.slot, layer);
      const auto table = trio.book.table(id.ours.slot, layer);
      for (std::size_t i = static_cast<std::size_t>(state.shared_end); i < table.size(); ++i)
        EXPECT_EQ(held[table[i].page], 1u);
    }
  }
}

/// Reserving as many tokens as are reserved takes no page; one token more takes some or is refused.
void expect_reserved(const Trio& trio, SequenceId id) {
  SequenceBook book = trio.book;
  const std::int64_t tokens = book.reserved_tokens(id.slot);
  std::vector<PageRun> given;
  KVTILT_EXPECT_OK(book.reserve(id, tokens, given));
  EXPECT_TRUE(given.empty());
  EXPECT_TRUE(!book.reserve(id, tokens + 1, given).ok() || !given.empty());
}

TEST(SequenceBookRandom, DoesWhatTheDeviceAndTheCpuDo) {
  int forks = 0;
  int removals = 0;
  int refusals = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Trio trio(small_shape(), small_options());
    std::vector<Named> open;
    for (int step = 0; step < 80; ++step) {
      const int what = random.below(12);
      if (open.empty() || what == 0) {
        const Result<SequenceId> id = trio.book.open();
        if (!id) continue;
        trio.device.reset(id->slot);
        open.push_back({*id, trio.cpu.open().value()});
        continue;
      }
      const std::size_t index =
          static_cast<std::size_t>(random.below(static_cast<int>(open.size())));
      const Named id = open[index];
      const std::int64_t length = trio.book.state(id.ours.slot, 0).length;
      std::vector<PageRun> given;
      if (what <= 3) {
        const Status status = trio.book.reserve(id.ours, length + random.below(300), given);
        refusals += status.ok() ? 0 : 1;
        EXPECT_TRUE(status.ok() || given.empty());
        trio.device.give(id.ours.slot, given);
      } else if (what <= 7) {
        const int tokens = random.below(150);
        for (const int layer : {0, 2}) append(trio, id, layer, tokens);
      } else if (what == 8) {
        const std::int64_t cut = random.below(static_cast<int>(length) + 2);
        const Status ours = trio.book.truncate(id.ours, cut);
        const Status theirs = trio.cpu.truncate(id.theirs, cut);
        EXPECT_EQ(ours.code(), theirs.code());
        trio.device.truncate(id.ours.slot, cut);
        EXPECT_EQ(error_code(trio.device.record().fault), ours.code());
        trio.device.forget_record();
      } else if (what == 9) {
        const std::int64_t from = 4 + 32 * random.below(10);
        const std::int64_t to = from + 32 * random.below(4);
        const Status ours = trio.book.remove(id.ours, from, to);
        EXPECT_EQ(ours.code(), trio.cpu.remove(id.theirs, from, to).code());
        removals += ours.ok() ? 1 : 0;
        trio.device.remove(id.ours.slot, from, to);
        EXPECT_EQ(error_code(trio.device.record().fault), ours.code());
        trio.device.forget_record();
      } else if (what == 10) {
        ForkRequest request{};
        const Result<SequenceId> ours = trio.book.fork(id.ours, random.below(400), request, given);
        if (!ours) continue;
        trio.device.reset(ours->slot);
        trio.device.fork(request);
        trio.device.give(ours->slot, given);
        EXPECT_EQ(trio.device.record().fault, cuda::DeviceFault::None);
        open.push_back({*ours, trio.cpu.fork(id.theirs).value()});
        ++forks;
      } else {
        KVTILT_EXPECT_OK(trio.book.close(id.ours));
        KVTILT_EXPECT_OK(trio.cpu.close(id.theirs));
        trio.device.reset(id.ours.slot);
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(index));
      }
      if (what < 11 && random.chance(2)) trio.device.drop_shared(trio.book, id.ours.slot);
      for (const Named& each : open) {
        expect_equal(trio, each);
        expect_reserved(trio, each.ours);
      }
      expect_sound(trio, open);
      if (testing::Test::HasFailure()) return;
    }
  }
  EXPECT_GT(forks, 20);
  EXPECT_GT(removals, 5);
  EXPECT_GT(refusals, 5);
}

TEST(SequenceBook, ReservedTokensFit) {
  Trio trio(small_shape(), small_options());
  const Named id{trio.book.open().value(), trio.cpu.open().value()};
  std::vector<PageRun> given;
  KVTILT_EXPECT_OK(trio.book.reserve(id.ours, 700, given));
  EXPECT_EQ(trio.book.reserved_tokens(id.ours.slot), 4 + 40 + 32 * 21 - 1);
  ASSERT_EQ(given.size(), 2u);  // one run a layer: a fresh pool is in order
  EXPECT_EQ(given[0].count, (700 - 4 - 40) / 32);
  EXPECT_EQ(given[1].layer, 2);
  EXPECT_EQ(given[1].count, 70 / 32 + 2);
  trio.device.reset(id.ours.slot);
  trio.device.give(id.ours.slot, given);
  for (int i = 0; i < 100; ++i)
    for (const int layer : {0, 2}) append(trio, id, layer, 7);
  EXPECT_EQ(trio.book.state(id.ours.slot, 2).length, 700);
  expect_equal(trio, id);
}

/// Pages are removed and take new tokens: max_sequence_tokens bounds what a sequence holds, not how far
/// it gets.
TEST(SequenceBook, ASequenceThatDropsTokensGoesOn) {
  const CacheShape shape{{{1, 16, 16, 0}}};
  CacheOptions options = small_options();
  options.max_sequence_tokens = 300;
  Trio trio(shape, options);
  const Named id{trio.book.open().value(), trio.cpu.open().value()};
  std::vector<PageRun> given;
  trio.device.reset(id.ours.slot);
  KVTILT_EXPECT_OK(trio.book.reserve(id.ours, 300, given));
  trio.device.give(id.ours.slot, given);
  given.clear();
  EXPECT_THAT(std::string(trio.book.reserve(id.ours, 301, given).message()),
              HasSubstr("which is 300, beside 0 that were dropped"));
  for (std::int64_t dropped = 0; dropped < 3000; dropped += 64) {
    append(trio, id, 0, static_cast<std::int32_t>(dropped == 0 ? 300 : 64));
    EXPECT_EQ(trio.book.state(id.ours.slot, 0).length, 300 + dropped);
    EXPECT_EQ(trio.book.reserved_tokens(id.ours.slot), 300 + dropped);
    EXPECT_EQ(trio.book.reserve(id.ours, 301 + dropped, given).code(), ErrorCode::InvalidArgument);
    const std::int64_t from = 4 + 32 + dropped;
    KVTILT_EXPECT_OK(trio.book.remove(id.ours, from, from + 64));
    trio.device.remove(id.ours.slot, from, from + 64);
    KVTILT_EXPECT_OK(trio.cpu.remove(id.theirs, from, from + 64));
    KVTILT_EXPECT_OK(trio.book.reserve(id.ours, 364 + dropped, given));
    EXPECT_TRUE(given.empty());
  }
}

/// Otherwise runs get ever shorter: a launch takes at most 300 of them.
TEST(SequenceBook, PagesOfClosedSequencesComeBackAsOneRun) {
  Trio trio(small_shape(), small_options());
  std::vector<PageRun> given;
  for (int round = 0; round < 5; ++round) {
    const SequenceId one = trio.book.open().value();
    const SequenceId other = trio.book.open().value();
    given.clear();
    KVTILT_EXPECT_OK(trio.book.reserve(one, 700 - 50 * round, given));
    EXPECT_EQ(given.size(), 2u) << round;
    given.clear();
    KVTILT_EXPECT_OK(trio.book.reserve(other, 300, given));
    EXPECT_EQ(given.size(), 2u) << round;
    KVTILT_EXPECT_OK(trio.book.close(other));
    KVTILT_EXPECT_OK(trio.book.close(one));
  }
}

TEST(SequenceBook, RunsOfScatteredPagesAreGivenInOrder) {
  Trio trio(small_shape(), small_options());
  const SequenceId one = trio.book.open().value();
  const SequenceId other = trio.book.open().value();
  std::vector<PageRun> given;
  for (const std::int64_t tokens : {100, 200, 300, 400})
    for (const SequenceId& id : {one, other})
      KVTILT_EXPECT_OK(trio.book.reserve(id, tokens, given));
  KVTILT_EXPECT_OK(trio.book.close(one));
  const SequenceId id = trio.book.open().value();
  given.clear();
  KVTILT_EXPECT_OK(trio.book.reserve(id, 700, given));
  EXPECT_GT(given.size(), 4u);
  trio.device.reset(id.slot);
  trio.device.give(id.slot, given);
  for (const int layer : {0, 2}) {
    const std::span<const PageSlot> table = trio.book.table(id.slot, layer);
    const LayerView& view = trio.device.view(layer);
    ASSERT_EQ(static_cast<std::size_t>(view.states[id.slot].page_capacity), table.size());
    for (std::size_t i = 0; i < table.size(); ++i)
      EXPECT_EQ(view.table(static_cast<int>(id.slot))[i].page, table[i].page);
  }
}

TEST(SequenceBookHostile, RefusalsChangeNothing) {
  Trio trio(small_shape(), small_options());
  std::vector<PageRun> given;
  ForkRequest request{};
  const SequenceId id = trio.book.open().value();
  EXPECT_EQ(trio.book.reserve({9, 1}, 10, given).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(trio.book.reserve(id, 769, given).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(trio.book.reserve(id, -1, given).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(trio.book.truncate(id, -1).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(trio.book.check_layer(1).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(trio.book.check_layer(3).code(), ErrorCode::InvalidArgument);
  const SequenceId twice[] = {id, id};
  EXPECT_THAT(std::string(trio.book.check_batch(twice).message()), HasSubstr("twice"));
  const SequenceId ids[] = {id};
  const std::int32_t many[] = {1000};
  EXPECT_THAT(std::string(trio.book.check_append(ids, 0, many).message()),
              HasSubstr("layer 0: sequence 0 holds 0 tokens and lacks pages for 1000 more"));
  KVTILT_EXPECT_OK(trio.book.close(id));
  EXPECT_EQ(trio.book.close(id).code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(trio.book.fork(id, 0, request, given).code(), ErrorCode::InvalidArgument);
  EXPECT_TRUE(given.empty());
  EXPECT_NE(trio.book.open().value(), id);
}

TEST(SequenceBook, WhatNeverFitsIsNotWhatHasToWait) {
  CacheOptions options = small_options();
  options.token_capacity = 32 * 20;
  Trio trio(small_shape(), options);
  const std::int64_t pages = trio.book.pages(0).pages();
  const std::int64_t fitting = 4 + 40 + 32 * (pages + 1) - 1;
  ASSERT_LT(fitting, options.max_sequence_tokens);
  const SequenceId one = trio.book.open().value();
  const SequenceId other = trio.book.open().value();
  std::vector<PageRun> given;
  KVTILT_EXPECT_OK(trio.book.reserve(one, 300, given));
  given.clear();
  EXPECT_EQ(trio.book.reserve(other, fitting, given).code(), ErrorCode::OutOfMemory);
  for (const SequenceId id : {one, other}) {
    const Status never = trio.book.reserve(id, fitting + 1, given);
    EXPECT_EQ(never.code(), ErrorCode::OutOfCapacity);
    EXPECT_THAT(std::string(never.message()), HasSubstr("make token_capacity larger"));
  }
  EXPECT_TRUE(given.empty());
  KVTILT_EXPECT_OK(trio.book.close(one));
  KVTILT_EXPECT_OK(trio.book.reserve(other, fitting, given));
}

/// A window frees pages by their positions, so short pages stay as long as full ones.
TEST(SequenceBook, ShortPagesInAWindowAreReservedFor) {
  CacheOptions options = small_options();
  options.sink_tokens = options.recent_tokens = 0;
  Trio trio(CacheShape{{{1, 16, 16, 64}}}, options);
  const SequenceId id = trio.book.open().value();
  std::vector<PageRun> given;
  const auto append = [&](std::int32_t tokens) {
    KVTILT_EXPECT_OK(trio.book.check_append({&id, 1}, 0, {&tokens, 1}));
    trio.book.note_appended({&id, 1}, 0, {&tokens, 1});
  };
  for (std::int64_t length = 0; length < 8; ++length) {  // leaves a page of one token each time
    KVTILT_EXPECT_OK(trio.book.reserve(id, length + 32, given));
    append(32);
    KVTILT_EXPECT_OK(trio.book.truncate(id, length + 1));
  }
  EXPECT_EQ(trio.book.state(id.slot, 0).page_end, 8);
  KVTILT_EXPECT_OK(trio.book.reserve(id, 300, given));
  while (trio.book.state(id.slot, 0).length < 300 && !testing::Test::HasFailure()) append(1);
}

TEST(SequenceBook, ATableFullOfShortPagesSaysSo) {
  CacheShape shape;
  shape.layers = {{1, 16, 16, 0}};
  CacheOptions options;
  options.max_sequences = 1;
  options.max_sequence_tokens = 1024;
  Trio trio(shape, options);
  const SequenceId id = trio.book.open().value();
  std::vector<PageRun> given;
  const std::int32_t tokens[] = {200};
  Status status;
  std::int64_t length = 0;
  while ((status = trio.book.reserve(id, length + 200, given)).ok() && length < 800) {
    trio.book.note_appended({&id, 1}, 0, tokens);
    length += 5;
    KVTILT_EXPECT_OK(trio.book.truncate(id, length));
  }
  EXPECT_EQ(status.code(), ErrorCode::OutOfCapacity);
  EXPECT_LT(length, 800);
  EXPECT_THAT(std::string(status.message()), HasSubstr("left short by truncations"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("larger than 1024"));
}

}  // namespace
}  // namespace kvtilt::cuda
