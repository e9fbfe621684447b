// SPDX-License-Identifier: MIT
/// kvtilt's ParallelFor for engines whose threads execute every operation together, as ggml's do: one of
/// them leads and calls kvtilt, the others follow and work on what it hands out. The library owns no
/// threads. Copy it, or adapt yours.
#pragma once

#include <kvtilt/attention/parallel_for.hpp>

#include <atomic>

/// One operation at a time. All of its threads must take part, one as the leader, each other as a
/// follower with a number of its own, 1 to threads - 1.
class ThreadTeam {
 public:
  /// Calls work(parallel_for) on this thread, and lets the followers go when it returns. It must not
  /// throw: they would wait for ever.
  template <class Work>
  void lead(int threads, const Work& work) {
    threads_ = threads;
    work(kvtilt::ParallelFor{threads,
                             [](void* team, int, kvtilt::ParallelFor::Task task, void* argument) {
                               static_cast<ThreadTeam*>(team)->run(task, argument);
                             },
                             this});
    run(nullptr, nullptr);
  }

  /// Works on the leader's tasks until it lets go.
  void follow(int worker, int threads) {
    for (;;) {
      meet(threads);
      const kvtilt::ParallelFor::Task task = task_;
      if (task != nullptr) task(argument_, worker);
      meet(threads);  // only then may the leader change task_
      if (task == nullptr) return;
    }
  }

 private:
  static constexpr int spins = 20000;  // some 10 microseconds, then sleep

  void run(kvtilt::ParallelFor::Task task, void* argument) {
    task_ = task;
    argument_ = argument;
    meet(threads_);
    if (task != nullptr) task(argument, 0);
    meet(threads_);
  }

  /// Returns when all threads have called it; what they wrote before is visible then.
  void meet(int threads) {
    const unsigned meeting = meetings_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      meetings_.fetch_add(1, std::memory_order_release);
      meetings_.notify_all();
      return;
    }
    for (int i = 0; i < spins; ++i)
      if (meetings_.load(std::memory_order_acquire) != meeting) return;
    meetings_.wait(meeting, std::memory_order_acquire);
  }

  std::atomic<int> arrived_{0};
  std::atomic<unsigned> meetings_{0};
  int threads_ = 1;
  kvtilt::ParallelFor::Task task_ = nullptr;
  void* argument_ = nullptr;
};
