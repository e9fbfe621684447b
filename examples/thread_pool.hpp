// SPDX-License-Identifier: MIT
/// A thread pool for kvtilt's ParallelFor; the library owns no threads. Copy it, or adapt yours.
#pragma once

#include <kvtilt/attention/parallel_for.hpp>

#include <atomic>
#include <thread>
#include <vector>

/// Threads that wait for work. They spin for some microseconds first, because decoding soon makes
/// the next call, and then sleep.
class ThreadPool {
 public:
  /// `workers` counts the calling thread, which works as well.
  explicit ThreadPool(int workers) {
    for (int worker = 1; worker < workers; ++worker)
      threads_.emplace_back([this, worker] { serve(worker); });
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() {
    start(nullptr, nullptr);
    for (std::thread& thread : threads_) thread.join();
  }

  [[nodiscard]] int workers() const { return static_cast<int>(threads_.size()) + 1; }

  /// The pool can run one call at a time.
  [[nodiscard]] kvtilt::ParallelFor parallel_for() {
    return {workers(),
            [](void* pool, int, kvtilt::ParallelFor::Task task, void* argument) {
              static_cast<ThreadPool*>(pool)->run(task, argument);
            },
            this};
  }

 private:
  static constexpr int spins = 200000;  // some 100 microseconds: longer than an item of work

  template <class T>
  static void await_change(const std::atomic<T>& value, T old) {
    for (int i = 0; i < spins; ++i)
      if (value.load(std::memory_order_acquire) != old) return;
    value.wait(old, std::memory_order_acquire);
  }

  void start(kvtilt::ParallelFor::Task task, void* argument) {
    task_ = task;
    argument_ = argument;
    // The release below publishes task_, argument_ and running_ to the threads.
    running_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  void run(kvtilt::ParallelFor::Task task, void* argument) {
    start(task, argument);
    task(argument, 0);
    for (int left = running_.load(std::memory_order_acquire); left != 0;
         left = running_.load(std::memory_order_acquire))
      await_change(running_, left);
  }

  void serve(int worker) {
    for (unsigned round = 0;; ++round) {
      await_change(round_, round);
      if (task_ == nullptr) return;
      task_(argument_, worker);
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  std::atomic<unsigned> round_{0};
  std::atomic<int> running_{0};
  kvtilt::ParallelFor::Task task_ = nullptr;
  void* argument_ = nullptr;
};
