// SPDX-License-Identifier: MIT
/// Blocks of one size with a free list. Memory is taken in slabs of exactly what a reservation
/// lacks, and returned when the pool dies.
#pragma once

#include <kvtilt/cache/allocator.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstring>
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
        allocated_bytes_(std::exchange(other.allocated_bytes_, 0)) {}
  PagePool& operator=(PagePool&&) = delete;
  ~PagePool() {
    while (slabs_ != nullptr) {
      Slab* slab = slabs_;
      slabs_ = slab->next;
      allocator_.deallocate(allocator_.context, slab, slab->bytes, page_alignment);
    }
  }

  [[nodiscard]] std::size_t block_bytes() const { return block_bytes_; }
  [[nodiscard]] std::size_t free_count() const { return free_count_; }
  [[nodiscard]] std::size_t allocated_bytes() const { return allocated_bytes_; }

  /// Bytes the allocator would be asked for so that `count` blocks are free.
  [[nodiscard]] std::size_t missing_bytes(std::size_t count) const {
    return count <= free_count_ ? 0 : slab_bytes(count - free_count_);
  }

  /// Makes sure `count` blocks are free; false if the allocator has no memory, and then nothing
  /// has changed.
  [[nodiscard]] bool ensure_free(std::size_t count) {
    if (count <= free_count_) return true;
    const std::size_t missing = count - free_count_;
    const std::size_t bytes = slab_bytes(missing);
    void* memory = allocator_.allocate(allocator_.context, bytes, page_alignment);
    if (memory == nullptr) return false;
    Slab* slab = new (memory) Slab{slabs_, bytes};
    slabs_ = slab;
    allocated_bytes_ += bytes;
    std::byte* block = static_cast<std::byte*>(memory) + page_alignment;
    for (std::size_t i = missing; i-- > 0;) release(block + i * block_bytes_);
    return true;
  }

  /// A block; ensure_free must have promised it.
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

  [[nodiscard]] std::size_t slab_bytes(std::size_t blocks) const {
    return page_alignment + blocks * block_bytes_;
  }

  Allocator allocator_;
  std::size_t block_bytes_;
  std::byte* free_ = nullptr;
  std::size_t free_count_ = 0;
  Slab* slabs_ = nullptr;
  std::size_t allocated_bytes_ = 0;
};

}  // namespace kvtilt
