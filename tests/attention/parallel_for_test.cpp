// SPDX-License-Identifier: MIT
#include <kvtilt/attention/parallel_for.hpp>

#include <gtest/gtest.h>

#include <vector>

namespace kvtilt {
namespace {

TEST(ParallelFor, RunsEveryWorkerOnceOnTheCallingThreadByDefault) {
  std::vector<int> seen;
  ParallelFor serial;
  serial.workers = 3;
  serial([](void* argument,
            int worker) { static_cast<std::vector<int>*>(argument)->push_back(worker); },
         &seen);
  EXPECT_EQ(seen, (std::vector<int>{0, 1, 2}));
}

TEST(ParallelFor, HandsEverythingToTheCallersThreads) {
  struct Call {
    void* context;
    int workers;
  } call{};
  int context = 0;
  const ParallelFor own{5,
                        [](void* given, int workers, ParallelFor::Task task, void* argument) {
                          *static_cast<Call*>(argument) = {given, workers};
                          task(argument, 4);
                        },
                        &context};
  own([](void*, int worker) { EXPECT_EQ(worker, 4); }, &call);
  EXPECT_EQ(call.context, &context);
  EXPECT_EQ(call.workers, 5);
}

}  // namespace
}  // namespace kvtilt
