// SPDX-License-Identifier: MIT
// What the book does not know of, and what the device refuses: no page is written by two sequences.
#include <kvtilt/cuda/cache/sequence_book.hpp>

#include "support/caches.hpp"
#include "support/sequence_trio.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::fork_refused;
using test::Random;
using test::small_options;
using test::small_shape;
using test::Trio;

TEST(SequenceBookUntold, LearnsWhatItWasNotTold) {
  Trio trio(small_shape(), small_options());
  const SequenceId id = trio.book.open().value();
  std::vector<PageRun> given;
  KVTILT_EXPECT_OK(trio.book.reserve(id, 500, given));
  trio.device.reset(id.slot);
  trio.device.give(id.slot, given);
  for (const int layer : {0, 2}) trio.device.append(id.slot, layer, 300);

  // The device refuses to fork a sequence that the host knows incompletely.
  KVTILT_EXPECT_OK(trio.book.close(fork_refused(trio, id)));

  for (const int layer : {0, 2}) {
    const LayerView& view = trio.device.view(layer);
    const SequenceState& state = view.states[id.slot];
    KVTILT_EXPECT_OK(trio.book.adopt(
        id, layer, state,
        {view.table(static_cast<int>(id.slot)), static_cast<std::size_t>(state.page_capacity)}));
    EXPECT_EQ(trio.book.state(id.slot, layer).length, 300);
  }
  const PageSlot foreign[] = {{0, 59, 0}};
  EXPECT_EQ(trio.book.adopt(id, 0, {}, foreign).code(), ErrorCode::Corrupt);
}

/// A sequence that shared two pages with a fork, in a layer without a window and one of 64 tokens.
/// The fork is closed, so pages that the host releases become free.
struct Shared {
  Trio trio{CacheShape{{{1, 16, 16, 0}, {1, 16, 16, 64}}}, options()};
  SequenceId id;

  static CacheOptions options() {
    CacheOptions options = small_options();
    options.sink_tokens = options.recent_tokens = 0;
    return options;
  }

  Shared() : id(trio.book.open().value()) {
    trio.device.reset(id.slot);
    give(id, 320);
    for (const int layer : {0, 1}) {
      const std::int32_t tokens = 64;
      trio.book.note_appended({&id, 1}, layer, {&tokens, 1});
      trio.device.append(id.slot, layer, tokens);
    }
    ForkRequest request{};
    std::vector<PageRun> given;
    const SequenceId child = trio.book.fork(id, 0, request, given).value();
    trio.device.reset(child.slot);
    trio.device.fork(request);
    EXPECT_EQ(trio.device.record().fault, cuda::DeviceFault::None);
    KVTILT_EXPECT_OK(trio.book.close(child));
    trio.device.reset(child.slot);
  }

  void give(SequenceId to, std::int64_t tokens) {
    std::vector<PageRun> given;
    KVTILT_EXPECT_OK(trio.book.reserve(to, tokens, given));
    trio.device.give(to.slot, given);
  }
  void append_untold(std::int32_t tokens) {
    for (const int layer : {0, 1}) trio.device.append(id.slot, layer, tokens);
  }
  void expect_refused(cuda::DeviceFault fault) {
    EXPECT_EQ(trio.device.record().fault, fault);
    trio.device.forget_record();
  }
  [[nodiscard]] std::span<const PageSlot> held(SequenceId of, int layer) const {
    const LayerView& view = trio.device.view(layer);
    return {view.table(static_cast<int>(of.slot)),
            static_cast<std::size_t>(view.states[of.slot].page_capacity)};
  }
  /// Another sequence gets all free pages: the device holds no page in both. The host adopts its
  /// tables.
  void expect_apart() {
    const SequenceId other = trio.book.open().value();
    trio.device.reset(other.slot);
    give(other, 700);
    for (const int layer : {0, 1}) {
      for (const PageSlot& mine : held(id, layer))
        for (const PageSlot& theirs : held(other, layer)) EXPECT_NE(mine.page, theirs.page);
      KVTILT_EXPECT_OK(
          trio.book.adopt(id, layer, trio.device.view(layer).states[id.slot], held(id, layer)));
    }
  }
};

TEST(SequenceBookUntold, PagesOfATruncationThatTheDeviceRefusesAreDropped) {
  Shared both;
  both.append_untold(96);
  KVTILT_EXPECT_OK(both.trio.book.truncate(both.id, 32));
  both.trio.device.truncate(both.id.slot, 32);
  both.expect_refused(cuda::DeviceFault::TruncationRefused);
  both.trio.device.drop_shared(both.trio.book, both.id.slot);
  both.expect_apart();
}

TEST(SequenceBookUntold, PagesOfARemovalThatTheDeviceRefusesAreDropped) {
  Shared both;
  both.trio.device.truncate(both.id.slot, 48);
  KVTILT_EXPECT_OK(both.trio.book.remove(both.id, 32, 64));
  both.trio.device.remove(both.id.slot, 32, 64);
  both.expect_refused(cuda::DeviceFault::RemovalRefused);
  both.trio.device.drop_shared(both.trio.book, both.id.slot);
  both.expect_apart();
}

TEST(SequenceBookUntold, PagesOfARemovalThatTheDevicesWindowHasFreedAreDropped) {
  Shared both;
  both.append_untold(96);
  ASSERT_EQ(both.trio.device.view(1).states[both.id.slot].first_kept, 96);
  KVTILT_EXPECT_OK(both.trio.book.remove(both.id, 0, 32));
  both.trio.device.remove(both.id.slot, 0, 32);
  EXPECT_EQ(both.trio.device.record().fault, cuda::DeviceFault::None);
  both.trio.device.drop_shared(both.trio.book, both.id.slot);
  both.expect_apart();
}

TEST(SequenceBookUntold, PagesThatAnAppendThatTheDeviceRefusesPushesOutAreDropped) {
  Shared both;
  const std::int32_t tokens = 128;
  both.trio.book.note_appended({&both.id, 1}, 1, {&tokens, 1});
  both.trio.device.drop_shared(both.trio.book, both.id.slot);
  both.expect_apart();
}

TEST(SequenceBookUntold, PagesOfAForkThatTheDeviceRefusesCountAsShared) {
  Shared both;
  ASSERT_EQ(both.trio.device.view(0).states[both.id.slot].shared_end, 2);
  const std::int32_t tokens = 32;
  for (const int layer : {0, 1}) {
    both.trio.book.note_appended({&both.id, 1}, layer, {&tokens, 1});
    both.trio.device.append(both.id.slot, layer, tokens);
  }
  both.append_untold(1);
  KVTILT_EXPECT_OK(both.trio.book.close(fork_refused(both.trio, both.id)));
  for (const int layer : {0, 1})
    EXPECT_EQ(both.trio.device.view(layer).states[both.id.slot].shared_end,
              both.trio.book.state(both.id.slot, layer).shared_end);
  both.trio.device.forget_record();
  KVTILT_EXPECT_OK(both.trio.book.remove(both.id, 64, 96));
  both.trio.device.remove(both.id.slot, 64, 96);
  EXPECT_EQ(both.trio.device.record().fault, cuda::DeviceFault::None);
  both.expect_apart();
}

/// The window's pages are reused in another order when more of them are freed at once.
TEST(SequenceBookUntold, AForkOfOtherPagesIsRefused) {
  int refused = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Shared both;
    Random random(seed);
    for (int step = 0; step < 3; ++step) {
      std::int32_t tokens = 0;
      for (int part = 0; part < 2; ++part) {
        const std::int32_t some = random.between(1, 40);
        both.append_untold(some);
        tokens += some;
      }
      for (const int layer : {0, 1})  // two appends on the device, one in the book
        both.trio.book.note_appended({&both.id, 1}, layer, {&tokens, 1});
    }
    bool same = true;
    const std::span<const PageSlot> host = both.trio.book.table(both.id.slot, 1);
    for (std::size_t i = 0; i < host.size(); ++i)
      if (static_cast<std::int32_t>(i) < both.trio.book.state(both.id.slot, 1).page_end)
        same = same && both.held(both.id, 1)[i].page == host[i].page;
    ForkRequest request{};
    std::vector<PageRun> given;
    const SequenceId child = both.trio.book.fork(both.id, 0, request, given).value();
    both.trio.device.reset(child.slot);
    both.trio.device.fork(request);
    EXPECT_EQ(both.trio.device.record().fault == cuda::DeviceFault::None, same) << seed;
    refused += same ? 0 : 1;
  }
  EXPECT_GT(refused, 0);
  EXPECT_LT(refused, 20);
}

/// The host reuses dropped pages only once the device's release of them is queued.
TEST(SequenceBookUntold, WhatIsDroppedServesNobodyBeforeItIsReleased) {
  Shared learned;
  KVTILT_EXPECT_OK(learned.trio.book.truncate(learned.id, 32));  // whose launch fails
  EXPECT_EQ(learned.trio.book.dropped(learned.id.slot, 0).size(), 1u);
  learned.expect_apart();
  EXPECT_EQ(learned.trio.book.dropped(learned.id.slot, 0).size(), 0u);

  Shared released;
  SequenceBook& book = released.trio.book;
  const PageList& pages = book.pages(0);
  KVTILT_EXPECT_OK(book.truncate(released.id, 40));
  KVTILT_EXPECT_OK(book.truncate(released.id, 16));
  const std::int64_t before = pages.free_pages();
  released.give(released.id, 320);
  EXPECT_EQ(book.dropped(released.id.slot, 0).size(), 1u);
  EXPECT_EQ(pages.free_pages(), before - 1);
  released.trio.device.drop_shared(book, released.id.slot);
  EXPECT_EQ(pages.free_pages(), before);
  KVTILT_EXPECT_OK(book.truncate(released.id, 0));
  KVTILT_EXPECT_OK(book.close(released.id));
  EXPECT_EQ(pages.free_pages(), pages.pages());
}

/// Host and device both do these truncations and this removal, but on other pages.
TEST(SequenceBookUntold, AForkOfOtherPagesIsRefusedWithoutAWindow) {
  CacheOptions options = small_options();
  options.sink_tokens = options.recent_tokens = 0;
  Trio trio(CacheShape{{{1, 16, 16, 0}}}, options);
  const SequenceId id = trio.book.open().value();
  std::vector<PageRun> given;
  KVTILT_EXPECT_OK(trio.book.reserve(id, 192, given));
  trio.device.reset(id.slot);
  trio.device.give(id.slot, given);
  const auto append = [&](std::int32_t tokens) {
    trio.book.note_appended({&id, 1}, 0, {&tokens, 1});
    trio.device.append(id.slot, 0, tokens);
  };
  append(96);
  trio.device.truncate(id.slot, 16);  // by a graph: the book is not told
  trio.device.append(id.slot, 0, 32);
  trio.device.truncate(id.slot, 32);
  trio.device.append(id.slot, 0, 64);
  KVTILT_EXPECT_OK(trio.book.remove(id, 32, 64));
  trio.device.remove(id.slot, 32, 64);
  KVTILT_EXPECT_OK(trio.book.truncate(id, 10));
  trio.device.truncate(id.slot, 10);
  append(64);
  const SequenceState& device = trio.device.view(0).states[id.slot];
  const SequenceState& host = trio.book.state(id.slot, 0);
  EXPECT_EQ(trio.device.record().fault, cuda::DeviceFault::None);
  ASSERT_EQ(host.length, device.length);
  ASSERT_EQ(host.page_end, device.page_end);
  ASSERT_EQ(host.tail_start, device.tail_start);
  KVTILT_EXPECT_OK(trio.book.close(fork_refused(trio, id)));
}

TEST(SequenceBookUntold, AForkOfAnotherTailIsRefused) {
  CacheShape shape;
  shape.layers = {{1, 16, 16, 0}};
  CacheOptions options;
  options.max_sequences = 2;
  options.token_capacity = 2048;
  Trio trio(shape, options);
  const SequenceId id = trio.book.open().value();
  std::vector<PageRun> given;
  KVTILT_EXPECT_OK(trio.book.reserve(id, 1100, given));
  trio.device.reset(id.slot);
  trio.device.give(id.slot, given);
  const auto append = [&](std::int32_t tokens, bool told) {
    if (told) trio.book.note_appended({&id, 1}, 0, {&tokens, 1});
    trio.device.append(id.slot, 0, tokens);
  };
  append(1000, true);
  trio.device.truncate(id.slot, 830);  // by a graph: the book is not told
  append(170, false);
  append(30, true);
  const SequenceState& device = trio.device.view(0).states[id.slot];
  const SequenceState& host = trio.book.state(id.slot, 0);
  ASSERT_EQ(host.length, device.length);
  ASSERT_EQ(host.page_end, device.page_end);
  ASSERT_NE(host.tail_start, device.tail_start);

  // Otherwise truncate(834) would free a page on the host that the device keeps.
  fork_refused(trio, id);
}

}  // namespace
}  // namespace kvtilt::cuda
