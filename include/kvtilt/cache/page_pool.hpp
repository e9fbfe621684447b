// SPDX-License-Identifier: MIT
/// Blocks of one size with a free list. Memory is taken in slabs of exactly what a reservation
/// lacks, and returned when the pool dies. Growing has two steps, so that a reservation over
/// several pools can be given up as a whole.
#pragma once

#include <kvtilt/cache/allocator.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstring>
#include <limits>
#include <utility>

namespace kvtilt {

class PagePool {
 public:
  PagePool(const Allocator& allocator, std::size_t block_bytes)
      : allocator_(allocator), block_bytes_(block_bytes) {}
  PagePool(PagePool&& other) noexcept
      : allocator_(other.allocator_),
        block_bytes_(other.block_bytes_),
        free_(std::exchange(other.free_, nullptr)),
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
    if (__builtin_mul_overflow(count - free_count_, block_bytes_, &bytes) ||
        __builtin_add_overflow(bytes, std::size_t{page_alignment}, &bytes))
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
    pending_ = new (memory) Slab{nullptr, bytes};
    return true;
  }

  /// Turns what prepare() took into free blocks.
  void commit() {
    if (pending_ == nullptr) return;
    Slab* slab = std::exchange(pending_, nullptr);
    slab->next = slabs_;
    slabs_ = slab;
    allocated_bytes_ += slab->bytes;
    std::byte* block = reinterpret_cast<std::byte*>(slab) + page_alignment;
    for (std::size_t i = (slab->bytes - page_alignment) / block_bytes_; i-- > 0;)
      release(block + i * block_bytes_);
  }

  /// Returns it instead.
  void abandon() {
    Slab* slab = std::exchange(pending_, nullptr);
    if (slab != nullptr)
      allocator_.deallocate(allocator_.context, slab, slab->bytes, page_alignment);
  }

  /// A free block; there must be one.
  [[nodiscard]] std::byte* acquire() {
    std::byte* block = free_;
    std::memcpy(&free_, block, sizeof free_);
    --free_count_;
    return block;
  }

  void release(std::byte* block) {
    std::memcpy(block, &free_, sizeof free_);
    free_ = block;
    ++free_count_;
  }

 private:
  struct Slab {
    Slab* next;
    std::size_t bytes;
  };
  static_assert(sizeof(Slab) <= page_alignment);

  Allocator allocator_;
  std::size_t block_bytes_;
  std::byte* free_ = nullptr;
  std::size_t free_count_ = 0;
  Slab* slabs_ = nullptr;
  Slab* pending_ = nullptr;  ///< between prepare() and commit() or abandon()
  std::size_t allocated_bytes_ = 0;
};

}  // namespace kvtilt
