// SPDX-License-Identifier: MIT
/// Tests that ThreadSanitizer sees races of emulated threads, and none where they are ordered.
#include "support/emulated_threads.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>

#if defined(KVTILT_TEST_TSAN)
#define KVTILT_EXPECT_RACE(statement) EXPECT_DEATH(statement, "data race")
#else
#define KVTILT_EXPECT_RACE(statement)
#endif

namespace kvtilt::test {
namespace {

/// Two blocks of 64 threads; `body` also gets a number in memory that blocks share.
void run_two_blocks(const std::function<void(EmulatedThreads&, int*, std::uint32_t&)>& body) {
  std::uint32_t counter = 0;
  emulate(2, 64, 64 * sizeof(int), [&](EmulatedThreads& threads) {
    body(threads, reinterpret_cast<int*>(threads.shared()), counter);
  });
}

TEST(EmulatorRaceDeathTest, ThreadsOfABlockThatDoNotMeetRace) {
  const auto read_across = [](const auto& meet) {
    run_two_blocks([&](EmulatedThreads& threads, int* cell, std::uint32_t&) {
      cell[threads.thread()] = threads.thread();
      meet(threads);
      EXPECT_EQ(cell[threads.thread() ^ 1], threads.thread() ^ 1);
    });
  };
  read_across([](EmulatedThreads& threads) { threads.sync(); });
  read_across([](EmulatedThreads& threads) { threads.sync_warp(); });
  KVTILT_EXPECT_RACE(read_across([](EmulatedThreads&) {}));
  KVTILT_EXPECT_RACE(read_across(
      [](EmulatedThreads& threads) { threads.ballot(true); }));  // a ballot does not order memory
}

TEST(EmulatorRaceDeathTest, BlocksThatOnlyCountRace) {
  int published = 0;
  const auto last_reads = [&](const auto& arrive) {
    run_two_blocks([&](EmulatedThreads& threads, int*, std::uint32_t& counter) {
      if (threads.block() == 0 && threads.thread() == 63) published = 7;
      threads.sync();
      if (threads.thread() == 0 && arrive(threads, &counter) == 1) {
        EXPECT_EQ(published, 7);
      }
    });
  };
  last_reads([](EmulatedThreads& threads, std::uint32_t* counter) {
    return threads.atomic_add_acquire_release(counter, 1);
  });
  last_reads([](EmulatedThreads& threads, std::uint32_t* counter) {
    threads.fence();
    const std::uint32_t before = threads.atomic_add(counter, 1);
    threads.fence();
    return before;
  });
  last_reads([](EmulatedThreads& threads, std::uint32_t* counter) {
    const std::uint32_t before = threads.atomic_count_release(counter);
    threads.fence();
    return before;
  });
  KVTILT_EXPECT_RACE(last_reads([](EmulatedThreads& threads, std::uint32_t* counter) {
    return threads.atomic_add(counter, 1);
  }));
  KVTILT_EXPECT_RACE(last_reads([](EmulatedThreads& threads, std::uint32_t* counter) {
    return threads.atomic_count_release(counter);
  }));  // nothing acquires
  KVTILT_EXPECT_RACE(last_reads([](EmulatedThreads& threads, std::uint32_t* counter) {
    const std::uint32_t before = threads.atomic_add(counter, 1);
    threads.fence();
    return before;
  }));  // nothing releases
}

}  // namespace
}  // namespace kvtilt::test
