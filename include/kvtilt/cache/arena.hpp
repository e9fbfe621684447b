// SPDX-License-Identifier: MIT
/// Makes an Allocator of a caller's memory.
#pragma once

#include <kvtilt/cache/allocator.hpp>
#include <kvtilt/page/layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>

namespace kvtilt {

/// A first-fit allocator over fixed memory, in multiples of page_alignment. Adjacent holes merge, so
/// once everything is given back, it is as it was at first. It does not own the memory and writes
/// only into holes. Not thread-safe.
///
/// Cost  time that grows with the number of holes
class Arena {
 public:
  /// `memory` may start anywhere; the bytes before the first multiple of page_alignment are lost.
  explicit Arena(std::span<std::byte> memory) : size_(memory.size()) {
    const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(memory.data()) % page_alignment;
    const std::size_t lost = misaligned == 0 ? 0 : page_alignment - misaligned;
    if (lost < memory.size()) rest_ = memory.subspan(lost);
  }
  Arena(const Arena&) = delete;  // its allocators point at it
  Arena& operator=(const Arena&) = delete;

  [[nodiscard]] std::size_t size() const { return size_; }
  /// While nothing has been given back, requests of multiples of page_alignment succeed until their
  /// sum exceeds this. Afterwards a request may also fail because it is longer than every hole.
  [[nodiscard]] std::size_t free_bytes() const { return hole_bytes_ + rest_.size(); }

  /// Serves alignments up to page_alignment. Valid as long as this object.
  [[nodiscard]] Allocator allocator() {
    return {[](void* self, std::size_t bytes, std::size_t alignment) {
              return static_cast<Arena*>(self)->allocate(bytes, alignment);
            },
            [](void* self, void* memory, std::size_t bytes, std::size_t) {
              static_cast<Arena*>(self)->deallocate(memory, bytes);
            },
            this};
  }

 private:
  /// Lies at the start of the memory that it describes.
  struct Hole {
    Hole* next;  ///< at a higher address, and not adjacent
    std::size_t bytes;

    [[nodiscard]] std::byte* end() { return reinterpret_cast<std::byte*>(this) + bytes; }
  };
  static_assert(sizeof(Hole) <= page_alignment);

  void* allocate(std::size_t bytes, std::size_t alignment) {
    if (bytes > free_bytes() || alignment > page_alignment) return nullptr;
    const std::size_t taken = round_up(bytes, page_alignment);
    for (Hole** at = &holes_; *at != nullptr && taken > 0; at = &(*at)->next) {
      Hole* hole = *at;
      if (hole->bytes < taken) continue;
      *at = hole->bytes == taken ? hole->next
                                 : new (reinterpret_cast<std::byte*>(hole) + taken)
                                       Hole{hole->next, hole->bytes - taken};
      hole_bytes_ -= taken;
      return hole;
    }
    if (bytes > rest_.size()) return nullptr;
    std::byte* memory = rest_.data();
    // At the end less than `taken` may be left, which suffices: nothing follows.
    rest_ = rest_.subspan(std::min(taken, rest_.size()));
    return memory;
  }

  void deallocate(void* memory, std::size_t bytes) {
    if (bytes == 0) return;
    std::byte* start = static_cast<std::byte*>(memory);
    std::byte* end = start + std::min(round_up(bytes, page_alignment),
                                      static_cast<std::size_t>(rest_.data() - start));
    Hole** at = &holes_;
    for (; *at != nullptr && (*at)->end() < start; at = &(*at)->next) {
    }
    if (*at != nullptr && (*at)->end() == start) {
      start = reinterpret_cast<std::byte*>(*at);
      hole_bytes_ -= (*at)->bytes;
      *at = (*at)->next;
    }
    if (*at != nullptr && reinterpret_cast<std::byte*>(*at) == end) {
      end = (*at)->end();
      hole_bytes_ -= (*at)->bytes;
      *at = (*at)->next;
    }
    if (end == rest_.data()) {
      rest_ = {start, rest_.data() + rest_.size()};
    } else {
      *at = new (start) Hole{*at, static_cast<std::size_t>(end - start)};
      hole_bytes_ += (*at)->bytes;
    }
  }

  std::span<std::byte> rest_;  ///< the free memory behind all pieces in use and all holes
  Hole* holes_ = nullptr;      ///< in order of address, all before rest_
  std::size_t hole_bytes_ = 0;
  std::size_t size_;
};

}  // namespace kvtilt
