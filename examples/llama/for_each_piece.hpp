// SPDX-License-Identifier: MIT
// Distributes the pieces of a text over threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace llama {

/// Calls run(worker, i) once for each piece i of `count`, on `threads` threads; make() makes one
/// worker per thread. After an exception no further piece is begun, and the exception is rethrown.
template <class Make, class Run>
void for_each_piece(std::size_t count, int threads, Make make, Run run) {
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  const auto work = [&] {
    try {
      auto worker = make();
      for (std::size_t i = next++; i < count; i = next++) run(worker, i);
    } catch (...) {
      next = count;
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace llama
