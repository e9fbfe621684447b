// SPDX-License-Identifier: MIT
/// A pool of blocks of one size with a free list. Memory is allocated in slabs (runs of blocks) of
/// exactly what a reservation lacks, and returned when the pool is destroyed, or earlier if no block
/// of a slab is in use. Growing takes two steps, so that a reservation over several pools can be
/// undone as a whole.
#pragma once

#include <kvtilt/cache/allocator.hpp>
#include <kvtilt/page/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

namespace kvtilt {

/// The sum, or SIZE_MAX if it overflows.
constexpr std::size_t saturating_add(std::size_t a, std::size_t b) {
  std::size_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<std::size_t>::max() : sum;
}

/// A block of a pool. Its counter says how many sequences share it; access it atomically.
struct Block {
  std::byte* data = nullptr;
  std::uint32_t* references = nullptr;
};

class BlockPool {
 public:
  /// No slab is larger, unless a single block is: one block in use keeps its whole slab allocated.
  static constexpr std::size_t max_slab_bytes = std::size_t{32} << 20;

  BlockPool(const Allocator& allocator, std::size_t block_bytes)
      : allocator_(allocator),
        block_bytes_(block_bytes),
        slab_blocks_(std::max<std::size_t>(
            1, (max_slab_bytes - 2 * page_alignment) / saturating_add(block_bytes, 8))) {}
  BlockPool(BlockPool&& other) noexcept
      : allocator_(other.allocator_),
        block_bytes_(other.block_bytes_),
        slab_blocks_(other.slab_blocks_),
        slabs_(std::exchange(other.slabs_, {})),
        pending_(std::exchange(other.pending_, nullptr)) {}
  BlockPool& operator=(BlockPool&&) = delete;
  ~BlockPool() {
    abandon();
    for (Slab*& list : slabs_.of) return_all(list);
  }

  [[nodiscard]] std::size_t block_bytes() const { return block_bytes_; }
  [[nodiscard]] std::size_t free_count() const { return slabs_.free_blocks; }
  [[nodiscard]] std::size_t allocated_bytes() const { return slabs_.bytes; }
  /// Bytes of the slabs without a block in use.
  [[nodiscard]] std::size_t idle_bytes() const { return slabs_.idle_bytes; }

  /// Bytes to allocate so that `count` blocks are free; SIZE_MAX if that overflows.
  [[nodiscard]] std::size_t missing_bytes(std::size_t count) const {
    return bytes_of(count - std::min(count, slabs_.free_blocks));
  }
  /// What missing_bytes() would be after give_back().
  [[nodiscard]] std::size_t missing_bytes_without_idle(std::size_t count) const {
    return bytes_of(count - std::min(count, slabs_.free_blocks - slabs_.idle_blocks));
  }

  /// First step: allocates what `count` free blocks need; commit() or abandon() must follow. False if
  /// the allocator is out of memory; nothing is taken then.
  [[nodiscard]] bool prepare(std::size_t count) {
    if (missing_bytes(count) == std::numeric_limits<std::size_t>::max()) return false;
    for (std::size_t free = slabs_.free_blocks; free < count;) {
      const std::size_t blocks = std::min(count - free, slab_blocks_);
      void* memory = allocator_.allocate(allocator_.context, slab_bytes(blocks), page_alignment);
      if (memory == nullptr) {
        abandon();
        return false;
      }
      pending_ = new (memory) Slab{pending_, nullptr, static_cast<std::uint32_t>(blocks)};
      free += blocks;
    }
    return true;
  }

  /// Second step: turns what prepare() took into free blocks.
  void commit() {
    while (pending_ != nullptr) {
      Slab* slab = std::exchange(pending_, pending_->next);
      for (std::uint32_t i = slab->blocks; i-- > 0;) {
        new (records(slab) + i) Record{0, i};
        push(slab, i);
      }
      slabs_.bytes += slab_bytes(slab->blocks);
      slabs_.free_blocks += slab->blocks;
      link(slab, Idle);
    }
  }

  /// Second step, the other way: returns what prepare() took.
  void abandon() { return_all(pending_); }

  /// Returns the slabs without a block in use; false if there are none.
  bool give_back() {
    if (slabs_.of[Idle] == nullptr) return false;
    slabs_.free_blocks -= std::exchange(slabs_.idle_blocks, 0);
    slabs_.bytes -= std::exchange(slabs_.idle_bytes, 0);
    return_all(slabs_.of[Idle]);
    return true;
  }

  /// Takes a free block, with a reference count of 1; there must be one. Slabs without a block in use
  /// are spared while others have a free block. Of those, the one that most recently had all blocks in
  /// use comes first: it is the least likely to become idle.
  [[nodiscard]] Block acquire() {
    Slab* slab = slabs_.of[slabs_.of[Mixed] != nullptr ? Mixed : Idle];
    const Use before = use_of(slab);
    const std::uint32_t index = slab->first_free;
    std::byte* data = block_data(slab, index);
    std::memcpy(&slab->first_free, data, sizeof slab->first_free);
    --slab->free;
    --slabs_.free_blocks;
    move(slab, before);
    Record& record = records(slab)[index];
    record.references = 1;
    return {data, &record.references};
  }

  void release(const Block& block) {
    Record* record = reinterpret_cast<Record*>(block.references);
    Slab* slab = reinterpret_cast<Slab*>(record - record->index) - 1;
    const Use before = use_of(slab);
    push(slab, record->index);
    ++slabs_.free_blocks;
    move(slab, before);
  }

 private:
  /// Whether none, some or all blocks of a slab are in use.
  enum Use { Idle, Mixed, Full };

  /// The header of a slab. A Record for each block follows it, then the blocks.
  struct Slab {
    Slab* next;
    Slab* previous;
    std::uint32_t blocks;
    std::uint32_t free = 0;        ///< blocks
    std::uint32_t first_free = 0;  ///< index; a free block's first bytes hold the next one's
  };
  struct Record {
    std::uint32_t references;  ///< first: Block points at it
    std::uint32_t index;       ///< of the block in its slab
  };
  struct Slabs {
    Slab* of[3] = {};  ///< by Use
    std::size_t bytes = 0;
    std::size_t free_blocks = 0;
    std::size_t idle_bytes = 0;
    std::size_t idle_blocks = 0;
  };
  static_assert(sizeof(Record) == 8 && sizeof(Slab) % alignof(Record) == 0);
  static constexpr std::size_t max_blocks = std::size_t{1} << 40;

  [[nodiscard]] static constexpr std::size_t header_bytes(std::size_t blocks) {
    return round_up(sizeof(Slab) + blocks * sizeof(Record), page_alignment);
  }
  [[nodiscard]] std::size_t slab_bytes(std::size_t blocks) const {
    return header_bytes(blocks) + blocks * block_bytes_;
  }
  /// Bytes of the slabs for so many blocks; SIZE_MAX if that overflows.
  [[nodiscard]] std::size_t bytes_of(std::size_t blocks) const {
    if (blocks == 0) return 0;
    std::size_t bytes = 0;
    const std::size_t rest = blocks % slab_blocks_;
    if (blocks > max_blocks || __builtin_mul_overflow(blocks, block_bytes_, &bytes))
      return std::numeric_limits<std::size_t>::max();
    return saturating_add(bytes, blocks / slab_blocks_ * header_bytes(slab_blocks_) +
                                     (rest == 0 ? 0 : header_bytes(rest)));
  }

  [[nodiscard]] static Record* records(Slab* slab) { return reinterpret_cast<Record*>(slab + 1); }
  [[nodiscard]] std::byte* block_data(Slab* slab, std::uint32_t index) const {
    return reinterpret_cast<std::byte*>(slab) + header_bytes(slab->blocks) + index * block_bytes_;
  }
  [[nodiscard]] static Use use_of(const Slab* slab) {
    return slab->free == 0 ? Full : slab->free == slab->blocks ? Idle : Mixed;
  }

  void push(Slab* slab, std::uint32_t index) {
    std::memcpy(block_data(slab, index), &slab->first_free, sizeof slab->first_free);
    slab->first_free = index;
    ++slab->free;
  }
  void move(Slab* slab, Use before) {
    const Use after = use_of(slab);
    if (after == before) return;
    unlink(slab, before);
    link(slab, after);
  }
  void link(Slab* slab, Use use) {
    slab->previous = nullptr;
    slab->next = std::exchange(slabs_.of[use], slab);
    if (slab->next != nullptr) slab->next->previous = slab;
    if (use != Idle) return;
    slabs_.idle_bytes += slab_bytes(slab->blocks);
    slabs_.idle_blocks += slab->blocks;
  }
  void unlink(Slab* slab, Use use) {
    (slab->previous != nullptr ? slab->previous->next : slabs_.of[use]) = slab->next;
    if (slab->next != nullptr) slab->next->previous = slab->previous;
    if (use != Idle) return;
    slabs_.idle_bytes -= slab_bytes(slab->blocks);
    slabs_.idle_blocks -= slab->blocks;
  }
  void return_all(Slab*& list) {
    while (list != nullptr) {
      Slab* slab = std::exchange(list, list->next);
      allocator_.deallocate(allocator_.context, slab, slab_bytes(slab->blocks), page_alignment);
    }
  }

  Allocator allocator_;
  std::size_t block_bytes_;
  std::size_t slab_blocks_;  ///< the most blocks of a slab
  Slabs slabs_;
  Slab* pending_ = nullptr;  ///< between prepare() and commit() or abandon()
};

}  // namespace kvtilt
