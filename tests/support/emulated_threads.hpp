// SPDX-License-Identifier: MIT
/// Runs kernel bodies on the host: EmulatedThreads has the members of cuda::DeviceThreads
/// (kvtilt/cuda/threads.cuh), and emulate() is the launch.
///
///     emulate(blocks, threads_per_block, shared_bytes,
///             [&](EmulatedThreads& threads) { body(threads, arguments); });
///
/// Each thread of a block is a fiber that runs until it has to wait for others. It is stricter than
/// the GPU: threads that wait for each other must have called the same member on the same line, and
/// no thread may end while others wait for it. Anything that is undefined or hangs on the GPU fails
/// the test and ends the launch. A write that another thread reads without a sync() between them
/// shows as a difference between the orders of LaunchOrder, and under ThreadSanitizer as a race (see
/// race_watch.hpp). Threads must not spin on memory, because no other thread runs until they wait.
#pragma once

#include <kvtilt/core/half.hpp>

#include "emulated_block.hpp"
#include "mma_sum.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace kvtilt::test {

class EmulatedThreads {
 public:
  EmulatedThreads(EmulatedBlock& block, int thread) : block_(&block), thread_(thread) {}

  [[nodiscard]] int thread() const { return thread_; }
  [[nodiscard]] int thread_count() const { return block_->thread_count(); }
  [[nodiscard]] int lane() const { return thread_ % 32; }
  [[nodiscard]] int warp() const { return thread_ / 32; }
  [[nodiscard]] int block() const { return block_->number(); }
  [[nodiscard]] int block_count() const { return block_->count(); }
  [[nodiscard]] std::byte* shared() const { return block_->shared(); }

  void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    const EmulatedBlock::Ordered ordered(*block_, thread_, true);
    block_->meet_block(thread_, {"sync", file, line});
  }
  void sync_warp(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    const EmulatedBlock::Ordered ordered(*block_, thread_, false);
    block_->meet_warp(thread_, {"sync_warp", file, line});
  }
  void fence() const { block_->fence(thread_); }

  template <class T>
  T shuffle(T value, int lane, const char* file = __builtin_FILE(),
            int line = __builtin_LINE()) const {
    const WarpOperands& warp = exchange(value, {"shuffle", file, line});
    return read<T>(warp, lane & 31);
  }
  template <class T>
  T shuffle_xor(T value, int mask, const char* file = __builtin_FILE(),
                int line = __builtin_LINE()) const {
    const WarpOperands& warp = exchange(value, {"shuffle_xor", file, line});
    return read<T>(warp, lane() ^ mask);
  }
  std::uint32_t ballot(bool vote, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) const {
    const WarpOperands& warp = exchange<std::uint32_t>(vote ? 1 : 0, {"ballot", file, line});
    std::uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= read<std::uint32_t>(warp, lane) << lane;
    return votes;
  }
  std::uint32_t max_over_warp(std::uint32_t value, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) const {
    const WarpOperands& warp = exchange(value, {"max_over_warp", file, line});
    for (int lane = 0; lane < 32; ++lane) value = std::max(value, read<std::uint32_t>(warp, lane));
    return value;
  }
  std::uint32_t min_over_warp(std::uint32_t value, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) const {
    const WarpOperands& warp = exchange(value, {"min_over_warp", file, line});
    for (int lane = 0; lane < 32; ++lane) value = std::min(value, read<std::uint32_t>(warp, lane));
    return value;
  }

  std::uint32_t atomic_add(std::uint32_t* where, std::uint32_t value) const {
    return block_->count(thread_, where) ? __atomic_fetch_add(where, value, __ATOMIC_RELEASE)
                                         : __atomic_fetch_add(where, value, __ATOMIC_RELAXED);
  }
  std::uint64_t atomic_add(std::uint64_t* where, std::uint64_t value) const {
    return block_->count(thread_, where) ? __atomic_fetch_add(where, value, __ATOMIC_RELEASE)
                                         : __atomic_fetch_add(where, value, __ATOMIC_RELAXED);
  }
  std::uint32_t atomic_count_release(std::uint32_t* where) const {
    static_cast<void>(block_->count(thread_, where));
    return __atomic_fetch_add(where, 1, __ATOMIC_RELEASE);
  }
  std::uint32_t atomic_add_acquire_release(std::uint32_t* where, std::uint32_t value) const {
    return __atomic_fetch_add(where, value, __ATOMIC_ACQ_REL);
  }
  std::uint32_t atomic_compare_and_swap(std::uint32_t* where, std::uint32_t expected,
                                        std::uint32_t value) const {
    if (block_->count(thread_, where))
      __atomic_compare_exchange_n(where, &expected, value, false, __ATOMIC_RELEASE,
                                  __ATOMIC_RELAXED);
    else
      __atomic_compare_exchange_n(where, &expected, value, false, __ATOMIC_RELAXED,
                                  __ATOMIC_RELAXED);
    return expected;
  }

  template <class T>
  T load_fresh(const T* from) const {
    return *from;
  }

  template <class T>
  T load_racing(const T* from) const {
    const Unwatched own;
    return *from;
  }

  void prefetch(const std::byte*) const {}

  // Copies into stages are made at once, so a read before the wait goes unnoticed: that order is
  // the kernel's promise. A barrier holds how often all announced bytes were copied, and how many
  // are missing: a wait for copies that no thread starts is a deadlock.
  void hand_over_shared() const {}
  void prepare_stage(std::uint64_t* barrier) const { *barrier = 0; }
  void begin_stage(std::uint64_t* barrier, std::uint32_t bytes) const {
    const Unwatched own;
    if (lane() == 0) *barrier += bytes;
  }
  template <bool Once = true>
  void copy_to_stage(std::byte* to, const std::byte* from, std::uint32_t bytes,
                     std::uint64_t* barrier) const {
    if (lane() != 0) return;
    std::memcpy(to, from, bytes);
    watch_release(barrier);
    const Unwatched own;
    *barrier -= bytes;
    if (static_cast<std::uint32_t>(*barrier) == 0) *barrier += std::uint64_t{1} << 32;
  }
  void end_stage() const {}
  template <int Newer>
  void wait_stage(const std::uint64_t* barrier, std::uint32_t parity,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    const CallSite site{"wait_stage", file, line};
    {
      const Unwatched own;
      while ((*barrier >> 32 & 1) == parity) block_->wait_for_change(thread_, *barrier, site);
      block_->meet_warp(thread_, site);
    }
    watch_acquire(barrier);
  }

  /// Sums rounded as on an H200: see MmaSum.
  void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
           const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    const std::uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    float mine[12];  // each is read many times
    for (int half = 0; half < 12; ++half)
      mine[half] = to_float(F16{static_cast<std::uint16_t>(words[half / 2] >> (16 * (half % 2)))});
    const WarpOperands& warp = exchange(mine, {"mma", file, line});
    const Unwatched own;  // c is the thread's
    // PTX ISA, matrix fragments of mma.m16n8k16 with .f16, two halves per register: lanes 4g to
    // 4g+3 hold of row g of A columns 2t, 2t+1 in a0 and 2t+8, 2t+9 in a2, of row g+8 the same in
    // a1 and a3; of column g of B they hold these rows in b0 and b1.
    for (int index = 0; index < 4; ++index) {
      const int row = lane() / 4;
      const int reg = index / 2;
      const int column = lane() % 4 * 2 + index % 2;
      MmaSum sum(c[index]);
      for (int t = 0; t < 4; ++t) {
        const LaneOperands& of_a = warp.lanes[4 * row + t];
        const LaneOperands& of_b = warp.lanes[4 * column + t];
        for (int k = 0; k < 2; ++k) {
          sum.add(operand(of_a, 2 * reg + k), operand(of_b, 8 + k));
          sum.add(operand(of_a, 2 * reg + 4 + k), operand(of_b, 10 + k));
        }
      }
      c[index] = sum.value();
    }
  }
  void first_mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                 const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    for (float& sum : c) sum = 0.0f;
    mma(c, a, b0, b1, file, line);
  }
  std::uint32_t transpose(std::uint32_t value, const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) const {
    const WarpOperands& warp = exchange(value, {"transpose", file, line});
    const int column = lane() / 4;  // of the matrix as it came: a row of the result
    const int row = lane() % 4 * 2;
    std::uint32_t result = 0;
    for (int half = 0; half < 2; ++half)
      result |= half_bits_of(warp, 4 * (row + half) + column / 2, 0, column % 2) << (16 * half);
    return result;
  }

 private:
  template <class T>
  const WarpOperands& exchange(const T& value, CallSite site) const {
    const Unwatched own;
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(LaneOperands));
    std::memcpy(block_->operands(thread_).words, &value, sizeof value);
    return block_->meet_warp(thread_, site);
  }
  template <class T>
  static T read(const WarpOperands& warp, int lane) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    const Unwatched own;
    T value;
    std::memcpy(&value, warp.lanes[lane].words, sizeof value);
    return value;
  }
  static std::uint32_t half_bits_of(const WarpOperands& warp, int lane, int word, int half) {
    const Unwatched own;
    return warp.lanes[lane].words[word] >> (16 * half) & 0xffffu;
  }
  static float operand(const LaneOperands& operands, int i) {
    return bit_cast<float>(operands.words[i]);
  }

  EmulatedBlock* block_;
  int thread_;
};

/// Runs a launch: all blocks, one after the other. Shared memory of each starts as 0xff bytes
/// (NaN). Returns whether the launch ran to its end; if not, the test has failed.
inline bool emulate(int blocks, int threads_per_block, std::size_t shared_bytes,
                    const std::function<void(EmulatedThreads&)>& body, LaunchOrder order = {}) {
  bool done = true;
  {
    const Unwatched own;
    // One block's threads and memory serve all, unless races are watched: ThreadSanitizer would take
    // them for those used before. It has room for some thousand threads: races between blocks that
    // run further apart go unseen.
    constexpr std::size_t most_threads = 4096;
    std::vector<std::unique_ptr<EmulatedBlock>> run;
    for (const int number : order.of(blocks, 0)) {
      if (run.size() * static_cast<std::size_t>(threads_per_block) >= most_threads) run.clear();
      if (run.empty() || watches_races)
        run.push_back(
            std::make_unique<EmulatedBlock>(blocks, threads_per_block, shared_bytes, order));
      EmulatedBlock& block = *run.back();
      done = block.run(number, [&](int thread) {
        EmulatedThreads threads(block, thread);
        body(threads);
      });
      if (!done) break;
    }
  }
  watch_acquire(&Fibers::ended);
  return done;
}

}  // namespace kvtilt::test
