// SPDX-License-Identifier: MIT
/// The pools behind all layers of a cache: one per size of block, growing together or not at all.
#pragma once

#include <kvtilt/cache/arena.hpp>
#include <kvtilt/cache/page_pool.hpp>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

namespace kvtilt {

class BlockPools {
 public:
  /// Blocks come out of `page_memory`, or from `allocator` where that is empty.
  BlockPools(const Allocator& allocator, std::span<std::byte> page_memory)
      : arena_(page_memory.empty() ? nullptr : std::make_unique<Arena>(page_memory)),
        allocator_(arena_ ? arena_->allocator() : allocator) {}

  /// Index of the pool for blocks of this size; a new one if there was none.
  int pool_for(std::size_t block_bytes) {
    for (std::size_t i = 0; i < pools_.size(); ++i)
      if (pools_[i].block_bytes() == block_bytes) return static_cast<int>(i);
    pools_.emplace_back(allocator_, block_bytes);
    wanted_.push_back(0);
    return static_cast<int>(pools_.size() - 1);
  }
  [[nodiscard]] PagePool& operator[](int pool) { return pools_[static_cast<std::size_t>(pool)]; }

  /// The caller's memory; null if blocks come from an allocator.
  [[nodiscard]] const Arena* arena() const { return arena_.get(); }
  [[nodiscard]] std::size_t allocated_bytes() const {
    return sum([&](std::size_t i) { return pools_[i].allocated_bytes(); });
  }
  /// Bytes that give_back() would return.
  [[nodiscard]] std::size_t idle_bytes() const {
    return sum([&](std::size_t i) { return pools_[i].idle_bytes(); });
  }
  /// Bytes of the blocks that nobody uses.
  [[nodiscard]] std::size_t free_bytes() const {
    return sum([&](std::size_t i) { return pools_[i].free_count() * pools_[i].block_bytes(); });
  }

  /// What the next grow() is for: forget the last, then name all.
  void want_nothing() { std::fill(wanted_.begin(), wanted_.end(), 0); }
  void want(int pool, std::size_t blocks) { wanted_[static_cast<std::size_t>(pool)] += blocks; }

  /// Bytes grow() would take; SIZE_MAX if no number says how many. Always a multiple of
  /// page_alignment otherwise.
  [[nodiscard]] std::size_t missing_bytes() const {
    return sum([&](std::size_t i) { return pools_[i].missing_bytes(wanted_[i]); });
  }
  /// The same after give_back().
  [[nodiscard]] std::size_t missing_bytes_without_idle() const {
    return sum([&](std::size_t i) { return pools_[i].missing_bytes_without_idle(wanted_[i]); });
  }
  /// Bytes of the free blocks that grow() would leave over.
  [[nodiscard]] std::size_t unwanted_bytes() const {
    return sum([&](std::size_t i) {
      const std::size_t free = pools_[i].free_count();
      return (free - std::min(free, wanted_[i])) * pools_[i].block_bytes();
    });
  }

  /// Returns the memory of slabs without a block in use, so that blocks of any size can be made of
  /// it; false if there is none.
  bool give_back() {
    bool some = false;
    for (PagePool& pool : pools_) some = pool.give_back() || some;
    return some;
  }

  /// Makes the wanted blocks free. False if there is no memory: then nothing has changed.
  [[nodiscard]] bool grow() {
    bool room = true;
    for (std::size_t i = 0; i < pools_.size(); ++i) room = room && pools_[i].prepare(wanted_[i]);
    for (PagePool& pool : pools_) {
      if (room)
        pool.commit();
      else
        pool.abandon();
    }
    return room;
  }

 private:
  /// of(i): of the i-th pool
  template <class Of>
  [[nodiscard]] std::size_t sum(Of of) const {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < pools_.size(); ++i) bytes = saturating_add(bytes, of(i));
    return bytes;
  }

  std::unique_ptr<Arena> arena_;  ///< outlives the pools, and stays where it is when they move
  Allocator allocator_;
  std::vector<PagePool> pools_;
  std::vector<std::size_t> wanted_;  ///< by pool
};

}  // namespace kvtilt
