// SPDX-License-Identifier: MIT
/// Blocks of one size with a free list. Memory is taken in slabs of exactly what a reservation
/// lacks, and returned when the pool dies. Growing has two steps, so that a reservation over
/// several pools can be given up as a whole.
#pragma once

#include <kvtilt/cache/allocator.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

namespace kvtilt {

/// The sum, or SIZE_MAX where no number says how much that is.
constexpr std::size_t saturating_add(std::size_t a, std::size_t b) {
  std::size_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<std::size_t>::max() : sum;
}

/// A block of a pool. Its counter says how many sequences share it; access it atomically.
struct Block {
  std::byte* data = nullptr;
  std::uint32_t* references = nullptr;
};

class PagePool {
 public:
  PagePool(const Allocator& allocator, std::size_t block_bytes)
      : allocator_(allocator), block_bytes_(block_bytes) {}
  PagePool(PagePool&& other) noexcept
      : allocator_(other.allocator_),
        block_bytes_(other.block_bytes_),
        free_(std::exchange(other.free_, {})),
        free_count_(std::exchange(other.free_count_, 0)),
        slabs_(std::exchange(other.slabs_, nullptr)),
        pending_(std::exchange(other.pending_, nullptr)),
        allocated_bytes_(std::exchange(other.allocated_bytes_, 0)) {}
  PagePool& operator=(PagePool&&) = delete;
  ~PagePool() {
    abandon();
    while (slabs_ != nullptr) {
      Slab* slab = slabs_;
      slabs_ = slab->next;
      allocator_.deallocate(allocator_.context, slab, slab->bytes, page_alignment);
    }
  }

  [[nodiscard]] std::size_t block_bytes() const { return block_bytes_; }
  [[nodiscard]] std::size_t free_count() const { return free_count_; }
  [[nodiscard]] std::size_t allocated_bytes() const { return allocated_bytes_; }

  /// Bytes the allocator would be asked for so that `count` blocks are free; SIZE_MAX if no number
  /// says how many.
  [[nodiscard]] std::size_t missing_bytes(std::size_t count) const {
    if (count <= free_count_) return 0;
    std::size_t bytes = 0;
    const std::size_t blocks = count - free_count_;
    if (blocks > max_blocks || __builtin_mul_overflow(blocks, block_bytes_, &bytes) ||
        __builtin_add_overflow(bytes, header_bytes(blocks), &bytes))
      return std::numeric_limits<std::size_t>::max();
    return bytes;
  }

  /// Takes the memory that `count` free blocks need; commit() or abandon() must follow. False if
  /// the allocator has none.
  [[nodiscard]] bool prepare(std::size_t count) {
    const std::size_t bytes = missing_bytes(count);
    if (bytes == 0) return true;
    if (bytes == std::numeric_limits<std::size_t>::max()) return false;
    void* memory = allocator_.allocate(allocator_.context, bytes, page_alignment);
    if (memory == nullptr) return false;
    pending_ = new (memory) Slab{nullptr, bytes, count - free_count_};
    return true;
  }

  /// Turns what prepare() took into free blocks.
  void commit() {
    if (pending_ == nullptr) return;
    Slab* slab = std::exchange(pending_, nullptr);
    slab->next = slabs_;
    slabs_ = slab;
    allocated_bytes_ += slab->bytes;
    std::byte* start = reinterpret_cast<std::byte*>(slab);
    std::uint32_t* counters = reinterpret_cast<std::uint32_t*>(start + sizeof(Slab));
    std::byte* blocks = start + header_bytes(slab->blocks);
    for (std::size_t i = slab->blocks; i-- > 0;) release({blocks + i * block_bytes_, counters + i});
  }

  /// Returns it instead.
  void abandon() {
    Slab* slab = std::exchange(pending_, nullptr);
    if (slab != nullptr)
      allocator_.deallocate(allocator_.context, slab, slab->bytes, page_alignment);
  }

  /// A free block, which then has one owner; there must be one.
  [[nodiscard]] Block acquire() {
    const Block block = free_;
    std::memcpy(&free_, block.data, sizeof free_);
    --free_count_;
    *block.references = 1;
    return block;
  }

  void release(const Block& block) {
    std::memcpy(block.data, &free_, sizeof free_);
    free_ = block;
    ++free_count_;
  }

 private:
  struct Slab {
    Slab* next;
    std::size_t bytes;
    std::size_t blocks;
  };
  static constexpr std::size_t max_blocks = std::size_t{1} << 40;

  [[nodiscard]] static constexpr std::size_t header_bytes(std::size_t blocks) {
    return round_up(sizeof(Slab) + blocks * sizeof(std::uint32_t), page_alignment);
  }

  Allocator allocator_;
  std::size_t block_bytes_;
  Block free_;  ///< head of the free list; a free block's first bytes hold the next
  std::size_t free_count_ = 0;
  Slab* slabs_ = nullptr;
  Slab* pending_ = nullptr;  ///< between prepare() and commit() or abandon()
  std::size_t allocated_bytes_ = 0;
};

}  // namespace kvtilt
