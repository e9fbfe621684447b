// SPDX-License-Identifier: MIT
#include "../../examples/thread_team.hpp"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace {

/// How often each worker was called.
using Calls = std::vector<int>;

void count_call(void* calls, int worker) {
  ++(*static_cast<Calls*>(calls))[static_cast<std::size_t>(worker)];
}

/// Threads 1 to threads - 1 of an engine, which execute `operations` operations with the leader.
std::vector<std::thread> followers(ThreadTeam& team, int threads, int operations) {
  std::vector<std::thread> others;
  for (int worker = 1; worker < threads; ++worker)
    others.emplace_back([&team, worker, threads, operations] {
      for (int i = 0; i < operations; ++i) team.follow(worker, threads);
    });
  return others;
}

TEST(ThreadTeam, CallsEachTaskOnceForEachWorker) {
  ThreadTeam team;
  for (const int threads : {1, 2, 5, 3}) {
    constexpr int operations = 40;
    std::vector<std::thread> others = followers(team, threads, operations);
    Calls calls(static_cast<std::size_t>(threads));
    int expected = 0;
    for (int operation = 0; operation < operations; ++operation)
      team.lead(threads, [&](const kvtilt::ParallelFor& parallel) {
        EXPECT_EQ(parallel.workers, threads);
        for (int task = 0; task < operation % 4; ++task) {
          parallel(&count_call, &calls);
          ++expected;
          for (const int count : calls) EXPECT_EQ(count, expected);
        }
      });
    for (std::thread& other : others) other.join();
    EXPECT_EQ(expected, 60);
  }
}

}  // namespace
