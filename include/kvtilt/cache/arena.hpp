// SPDX-License-Identifier: MIT
/// A caller's memory as an Allocator.
#pragma once

#include <kvtilt/cache/allocator.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt {

/// Hands out its memory front to back, in whole multiples of page_alignment, and takes nothing
/// back: who asks for several pieces looks at free_bytes() first. Never frees the memory, and
/// writes nothing into it. One thread at a time.
class Arena {
 public:
  /// `memory` may start anywhere; the bytes before the first multiple of page_alignment are lost.
  explicit Arena(std::span<std::byte> memory) : size_(memory.size()) {
    const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(memory.data()) % page_alignment;
    const std::size_t lost = misaligned == 0 ? 0 : page_alignment - misaligned;
    if (lost < memory.size()) free_ = memory.subspan(lost);
  }
  Arena(const Arena&) = delete;  // its allocators point at it
  Arena& operator=(const Arena&) = delete;

  [[nodiscard]] std::size_t size() const { return size_; }
  /// Requests whose sizes are multiples of page_alignment succeed up to this sum, and no further.
  [[nodiscard]] std::size_t free_bytes() const { return free_.size(); }

  /// Serves alignments up to page_alignment. Valid as long as this object.
  [[nodiscard]] Allocator allocator() {
    return {[](void* self, std::size_t bytes, std::size_t alignment) {
              return static_cast<Arena*>(self)->allocate(bytes, alignment);
            },
            [](void*, void*, std::size_t, std::size_t) {}, this};
  }

 private:
  void* allocate(std::size_t bytes, std::size_t alignment) {
    if (bytes > free_.size() || alignment > page_alignment) return nullptr;
    std::byte* memory = free_.data();
    // The last piece may be cut short: nothing follows it.
    const std::size_t taken = round_up(bytes, page_alignment);
    free_ = free_.subspan(taken < free_.size() ? taken : free_.size());
    return memory;
  }

  std::span<std::byte> free_;
  std::size_t size_;
};

}  // namespace kvtilt
