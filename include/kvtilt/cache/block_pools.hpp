// SPDX-License-Identifier: MIT
/// The pools of all layers of a cache, one per block size; they grow all together or not at all.
#pragma once

#include <kvtilt/cache/arena.hpp>
#include <kvtilt/cache/block_pool.hpp>

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

  /// Index of the pool for blocks of this size; adds one if there is none.
  int pool_for(std::size_t block_bytes) {
    for (std::size_t i = 0; i < pools_.size(); ++i)
      if (pools_[i].block_bytes() == block_bytes) return static_cast<int>(i);
    pools_.emplace_back(allocator_, block_bytes);
    wanted_.push_back(0);
    return static_cast<int>(pools_.size() - 1);
  }
  [[nodiscard]] BlockPool& operator[](int pool) { return pools_[static_cast<std::size_t>(pool)]; }

  /// The caller's memory; null if blocks come from an allocator.
  [[nodiscard]] const Arena* arena() const { return arena_.get(); }
  [[nodiscard]] std::size_t allocated_bytes() const {
    return sum([&](std::size_t i) { return pools_[i].allocated_bytes(); });
  }
  /// Bytes that give_back() would return.
  [[nodiscard]] std::size_t idle_bytes() const {
    return sum([&](std::size_t i) { return pools_[i].idle_bytes(); });
  }
  /// Bytes of the blocks that are not in use.
  [[nodiscard]] std::size_t free_bytes() const {
    return sum([&](std::size_t i) { return pools_[i].free_count() * pools_[i].block_bytes(); });
  }

  /// Sets how many free blocks the next grow() must provide: want_nothing() first, then want() adds.
  void want_nothing() { std::fill(wanted_.begin(), wanted_.end(), 0); }
  void want(int pool, std::size_t blocks) { wanted_[static_cast<std::size_t>(pool)] += blocks; }

  /// Bytes that grow() would take: a multiple of page_alignment, or SIZE_MAX if that overflows.
  [[nodiscard]] std::size_t missing_bytes() const {
    return sum([&](std::size_t i) { return pools_[i].missing_bytes(wanted_[i]); });
  }
  /// What missing_bytes() would be after give_back().
  [[nodiscard]] std::size_t missing_bytes_without_idle() const {
    return sum([&](std::size_t i) { return pools_[i].missing_bytes_without_idle(wanted_[i]); });
  }
  /// Bytes of the free blocks that are not wanted.
  [[nodiscard]] std::size_t unwanted_bytes() const {
    return sum([&](std::size_t i) {
      const std::size_t free = pools_[i].free_count();
      return (free - std::min(free, wanted_[i])) * pools_[i].block_bytes();
    });
  }

  /// Returns the memory of slabs without a block in use, so that it can serve blocks of any size;
  /// false if there is none.
  bool give_back() {
    bool some = false;
    for (BlockPool& pool : pools_) some = pool.give_back() || some;
    return some;
  }

  /// Allocates until the wanted blocks are free. False if out of memory; nothing has changed then.
  [[nodiscard]] bool grow() {
    bool room = true;
    for (std::size_t i = 0; i < pools_.size(); ++i) room = room && pools_[i].prepare(wanted_[i]);
    for (BlockPool& pool : pools_) {
      if (room)
        pool.commit();
      else
        pool.abandon();
    }
    return room;
  }

 private:
  /// The sum of of(i), the bytes of the i-th pool; SIZE_MAX if it overflows.
  template <class Of>
  [[nodiscard]] std::size_t sum(Of of) const {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < pools_.size(); ++i) bytes = saturating_add(bytes, of(i));
    return bytes;
  }

  std::unique_ptr<Arena> arena_;  ///< outlives the pools; its address does not change on a move
  Allocator allocator_;
  std::vector<BlockPool> pools_;
  std::vector<std::size_t> wanted_;  ///< by pool
};

}  // namespace kvtilt
