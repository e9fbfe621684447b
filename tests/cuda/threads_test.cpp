// SPDX-License-Identifier: MIT
/// Tests the emulator in which the tests of this folder run kernel bodies.
#include <kvtilt/core/half.hpp>

#include "support/emulated_threads.hpp"
#include "support/fp16_oracle.hpp"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::test {
namespace {

const std::vector<LaunchOrder> orders = {
    {}, {LaunchOrder::Backward}, {LaunchOrder::Shuffled, 1}, {LaunchOrder::Shuffled, 2}};

TEST(Emulator, NumbersThreadsAndBlocks) {
  for (const LaunchOrder order : orders) {
    std::vector<int> runs(3 * 64);
    EXPECT_TRUE(emulate(
        3, 64, 0,
        [&](EmulatedThreads& threads) {
          EXPECT_EQ(threads.thread_count(), 64);
          EXPECT_EQ(threads.block_count(), 3);
          EXPECT_EQ(threads.lane(), threads.thread() % 32);
          EXPECT_EQ(threads.warp(), threads.thread() / 32);
          ++runs[static_cast<std::size_t>(64 * threads.block() + threads.thread())];
        },
        order));
    EXPECT_EQ(runs, std::vector<int>(3 * 64, 1));
  }
}

TEST(Emulator, OrdersBlocks) {
  const auto blocks = [](LaunchOrder order) {
    std::vector<int> seen;
    emulate(
        20, 32, 0,
        [&](EmulatedThreads& threads) {
          if (threads.thread() == 0) seen.push_back(threads.block());
        },
        order);
    return seen;
  };
  const std::vector<int> forward = blocks({});
  std::vector<int> backward = blocks({LaunchOrder::Backward});
  std::vector<int> shuffled = blocks({LaunchOrder::Shuffled, 7});
  EXPECT_NE(shuffled, forward);
  EXPECT_NE(shuffled, backward);
  std::reverse(backward.begin(), backward.end());
  std::sort(shuffled.begin(), shuffled.end());
  EXPECT_EQ(backward, forward);
  EXPECT_EQ(shuffled, forward);
}

TEST(Emulator, PoisonsSharedMemoryOfEachBlock) {
  emulate(2, 32, 100, [](EmulatedThreads& threads) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(threads.shared()) % 128, 0u);
    for (int byte = threads.thread(); byte < 100; byte += 32) {
      EXPECT_EQ(threads.shared()[byte], std::byte{0xff});
      threads.shared()[byte] = std::byte{1};
    }
  });
}

TEST(Emulator, SyncMakesOrdersAlike) {
  for (const LaunchOrder order : orders)
    EXPECT_TRUE(emulate(
        2, 128, 128 * 4,
        [](EmulatedThreads& threads) {
          std::uint32_t* const cells = reinterpret_cast<std::uint32_t*>(threads.shared());
          for (int round = 0; round < 3; ++round) {
            cells[threads.thread()] = static_cast<std::uint32_t>(threads.thread() + round);
            threads.sync();
            const int other = (threads.thread() + 65) % 128;
            EXPECT_EQ(cells[other], static_cast<std::uint32_t>(other + round));
            threads.sync();
          }
        },
        order));
}

TEST(Emulator, ShowsAMissingSyncInSomeOrder) {
  int wrong = 0;
  for (const LaunchOrder order : orders)
    emulate(
        1, 32, 128,
        [&](EmulatedThreads& threads) {
          threads.shared()[threads.thread()] = std::byte{1};
          if (threads.shared()[(threads.thread() + 1) % 32] != std::byte{1}) ++wrong;
        },
        order);
  EXPECT_GT(wrong, 0);
}

TEST(Emulator, Shuffles) {
  for (const LaunchOrder order : orders)
    EXPECT_TRUE(emulate(
        1, 96, 0,
        [](EmulatedThreads& threads) {
          const int warp = 1000 * threads.warp();
          for (int step = 0; step < 32; ++step) {
            const int from = (threads.lane() * 5 + step) % 32;
            EXPECT_EQ(threads.shuffle(warp + threads.lane(), from), warp + from);
            EXPECT_EQ(threads.shuffle_xor(warp + threads.lane(), step),
                      warp + (threads.lane() ^ step));
          }
          EXPECT_EQ(threads.shuffle(0.5 + threads.lane(), 31), 31.5);
          EXPECT_EQ(threads.shuffle(0.25f * static_cast<float>(threads.lane()), 2), 0.5f);
        },
        order));
}

TEST(Emulator, VotesAndReduces) {
  for (const LaunchOrder order : orders)
    EXPECT_TRUE(emulate(
        1, 64, 0,
        [](EmulatedThreads& threads) {
          const std::uint32_t lane = static_cast<std::uint32_t>(threads.lane());
          EXPECT_EQ(threads.ballot(lane % 3 == 0), 0x49249249u);
          EXPECT_EQ(threads.ballot(lane == 31 && threads.warp() == 1),
                    threads.warp() == 1 ? 0x80000000u : 0u);
          const std::uint32_t value = (lane * 0x9e3779b9u) ^ 0x80000000u;
          std::uint32_t greatest = 0;
          std::uint32_t least = 0xffffffffu;
          for (std::uint32_t other = 0; other < 32; ++other) {
            greatest = std::max(greatest, (other * 0x9e3779b9u) ^ 0x80000000u);
            least = std::min(least, (other * 0x9e3779b9u) ^ 0x80000000u);
          }
          EXPECT_EQ(threads.max_over_warp(value), greatest);
          EXPECT_EQ(threads.min_over_warp(value), least);
        },
        order));
}

TEST(Emulator, AtomicsReturnWhatWasThere) {
  std::uint32_t sum = 5;
  std::uint32_t owner = 0;
  int owners = 0;
  std::uint32_t released = 0;
  std::uint32_t acquired = 0;
  std::vector<int> seen(64);
  std::vector<int> arrived(64);
  std::vector<int> found(64);
  emulate(2, 32, 0, [&](EmulatedThreads& threads) {
    ++seen[threads.atomic_add(&sum, 1) - 5];
    ++arrived[threads.atomic_count_release(&released)];
    ++found[threads.atomic_add_acquire_release(&acquired, 1)];
    if (threads.atomic_compare_and_swap(&owner, 0, 9) == 0) ++owners;
  });
  EXPECT_EQ(seen, std::vector<int>(64, 1));
  EXPECT_EQ(arrived, std::vector<int>(64, 1));
  EXPECT_EQ(found, std::vector<int>(64, 1));
  EXPECT_EQ(sum, 69u);
  EXPECT_EQ(owner, 9u);
  EXPECT_EQ(owners, 1);
}

/// An entry of the PTX ISA's tables: register and half of lane (g, t) hold this row and column.
struct Entry {
  int word, half, row_offset, column_offset;
};

TEST(Emulator, MultipliesMatricesByTheFragmentsOfPtx) {
  // a0 a1 | a2 a3 | a4 a5 | a6 a7 of a lane; b0 b1 | b2 b3.
  const Entry a_table[] = {{0, 0, 0, 0}, {0, 1, 0, 1}, {1, 0, 8, 0}, {1, 1, 8, 1},
                           {2, 0, 0, 8}, {2, 1, 0, 9}, {3, 0, 8, 8}, {3, 1, 8, 9}};
  const Entry b_table[] = {{0, 0, 0, 0}, {0, 1, 1, 0}, {1, 0, 8, 0}, {1, 1, 9, 0}};
  const auto a_of = [](int row, int k) {
    return 0.5f * static_cast<float>(row - 3) - 0.25f * static_cast<float>(k * k % 11);
  };
  const auto b_of = [](int k, int column) {
    return static_cast<float>(7 * k % 13 - 4) + 0.125f * static_cast<float>(column);
  };
  const auto c_of = [](int row, int column) { return static_cast<float>(100 * row + column); };
  for (const LaunchOrder order : orders)
    EXPECT_TRUE(emulate(
        1, 64, 0,
        [&](EmulatedThreads& threads) {
          const int g = threads.lane() / 4;
          const int t = threads.lane() % 4;
          std::uint32_t a[4] = {};
          std::uint32_t b[2] = {};
          for (const Entry& at : a_table)
            a[at.word] |= static_cast<std::uint32_t>(
                              to_f16(a_of(g + at.row_offset, 2 * t + at.column_offset)).bits)
                          << (16 * at.half);
          for (const Entry& at : b_table)
            b[at.word] |= static_cast<std::uint32_t>(to_f16(b_of(2 * t + at.row_offset, g)).bits)
                          << (16 * at.half);
          float c[4] = {c_of(g, 2 * t), c_of(g, 2 * t + 1), c_of(g + 8, 2 * t),
                        c_of(g + 8, 2 * t + 1)};
          threads.mma(c, a, b[0], b[1]);
          for (int index = 0; index < 4; ++index) {
            const int row = g + 8 * (index / 2);
            const int column = 2 * t + index % 2;
            float expected = c_of(row, column);
            for (int k = 0; k < 16; ++k) expected += a_of(row, k) * b_of(k, column);
            EXPECT_EQ(c[index], expected) << row << ", " << column;  // all sums are exact
          }
        },
        order));
}

TEST(Emulator, TransposesEightByEight) {
  const auto element = [](int row, int column) {
    return static_cast<std::uint32_t>(0x8000 + 100 * row + column);
  };
  for (const LaunchOrder order : orders)
    EXPECT_TRUE(emulate(
        1, 32, 0,
        [&](EmulatedThreads& threads) {
          const int row = threads.lane() / 4;
          const int column = threads.lane() % 4 * 2;
          const std::uint32_t mine = element(row, column) | element(row, column + 1) << 16;
          EXPECT_EQ(threads.transpose(mine), element(column, row) | element(column + 1, row) << 16);
        },
        order));
}

TEST(Emulator, StagesAreWaitedForByOtherWarps) {
  const std::vector<std::byte> from(64, std::byte{7});
  for (const LaunchOrder order : orders)
    EXPECT_TRUE(emulate(
        1, 64, 128,
        [&](EmulatedThreads& threads) {
          std::uint64_t* barrier = reinterpret_cast<std::uint64_t*>(threads.shared());
          if (threads.thread() == 0) threads.prepare_stage(barrier);
          threads.sync();
          for (std::uint32_t use = 0; use < 3; ++use) {
            if (threads.warp() == 1) {
              threads.begin_stage(barrier, 64);
              threads.copy_to_stage(threads.shared() + 16, from.data(), 32, barrier);
              threads.copy_to_stage<false>(threads.shared() + 48, from.data(), 32, barrier);
            }
            threads.wait_stage<1>(barrier, use & 1);
            for (int i = 16; i < 80; ++i) EXPECT_EQ(threads.shared()[i], std::byte{7});
            threads.sync();
            if (threads.thread() == 0) std::memset(threads.shared() + 16, 0, 64);
            threads.sync();
          }
        },
        order));
}

TEST(EmulatorHostile, FailsWhereNobodyCopiesWhatIsWaitedFor) {
  EXPECT_NONFATAL_FAILURE(emulate(1, 32, 128,
                                  [](EmulatedThreads& threads) {
                                    std::uint64_t* barrier =
                                        reinterpret_cast<std::uint64_t*>(threads.shared());
                                    if (threads.thread() == 0) threads.prepare_stage(barrier);
                                    threads.sync();
                                    threads.begin_stage(barrier, 64);
                                    threads.wait_stage<1>(barrier, 0);
                                  }),
                          "deadlock");
}

TEST(EmulatorHostile, FailsWhereAThreadEndsWhileOthersWait) {
  EXPECT_NONFATAL_FAILURE(EXPECT_FALSE(emulate(1, 64, 0,
                                               [](EmulatedThreads& threads) {
                                                 if (threads.thread() != 40) threads.sync();
                                               })),
                          "from thread 40: ended");
  EXPECT_NONFATAL_FAILURE(EXPECT_FALSE(emulate(1, 32, 0,
                                               [](EmulatedThreads& threads) {
                                                 if (threads.lane() < 31) threads.sync_warp();
                                               })),
                          "deadlock");
}

TEST(EmulatorHostile, FailsWhereLanesMeetInDifferentCalls) {
  EXPECT_NONFATAL_FAILURE(emulate(1, 32, 0,
                                  [](EmulatedThreads& threads) {
                                    if (threads.lane() < 5)
                                      threads.ballot(true);
                                    else
                                      threads.max_over_warp(1);
                                  }),
                          "others wait in ballot");
  const auto same_member = [](EmulatedThreads& threads) {  // a macro argument is one line
    if (threads.lane() % 2 == 0)
      threads.shuffle(1, 0);
    else
      threads.shuffle(1, 1);
  };
  EXPECT_NONFATAL_FAILURE(emulate(1, 32, 0, same_member), "others wait in shuffle");
  EXPECT_NONFATAL_FAILURE(emulate(1, 64, 0,
                                  [](EmulatedThreads& threads) {
                                    if (threads.lane() == 3)
                                      threads.sync();
                                    else
                                      threads.sync_warp();
                                  }),
                          "deadlock");
}

TEST(EmulatorHostile, FailsOnWritesBehindSharedMemory) {
  EXPECT_NONFATAL_FAILURE(
      emulate(1, 32, 64, [](EmulatedThreads& threads) { threads.shared()[70] = std::byte{0}; }),
      "wrote byte 70");
}

TEST(EmulatorHostile, FailsOnPartialWarps) {
  EXPECT_NONFATAL_FAILURE(emulate(1, 33, 0, [](EmulatedThreads&) {}), "33 threads");
}

TEST(EmulatorHostile, StartsAfreshAfterAFailure) {
  EXPECT_NONFATAL_FAILURE(emulate(9, 32, 0,
                                  [](EmulatedThreads& threads) {
                                    EXPECT_LT(threads.block(), 1) << "no block follows";
                                    if (threads.lane() == 0) threads.sync();
                                  }),
                          "deadlock");
  EXPECT_TRUE(emulate(1, 32, 0, [](EmulatedThreads& threads) { threads.sync(); }));
}

}  // namespace
}  // namespace kvtilt::test
