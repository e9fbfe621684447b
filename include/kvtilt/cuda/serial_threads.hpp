// SPDX-License-Identifier: MIT
/// The block of one thread that runs kernel bodies on the host, where a cache repeats what the
/// device does to lengths and tables.
#pragma once

#include <cstdint>

namespace kvtilt::cuda {

class SerialThreads {
 public:
  [[nodiscard]] int thread() const { return 0; }
  [[nodiscard]] int thread_count() const { return 1; }
  void sync() const {}
  [[nodiscard]] std::uint32_t atomic_add(std::uint32_t* where, std::uint32_t value) const {
    const std::uint32_t before = *where;
    *where += value;
    return before;
  }
  [[nodiscard]] std::uint32_t atomic_compare_and_swap(std::uint32_t* where, std::uint32_t expected,
                                                      std::uint32_t value) const {
    const std::uint32_t before = *where;
    if (before == expected) *where = value;
    return before;
  }
};

}  // namespace kvtilt::cuda
