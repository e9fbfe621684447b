// SPDX-License-Identifier: MIT
/// Where a cache's memory comes from.
#pragma once

#include <cstddef>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace kvtilt {

/// A caller's allocator: two functions and a context. `allocate` returns null if it is out of memory.
/// Both may be called from any thread that reserves for, forks, loads or closes a sequence.
struct Allocator {
  void* (*allocate)(void* context, std::size_t bytes, std::size_t alignment);
  void (*deallocate)(void* context, void* memory, std::size_t bytes, std::size_t alignment);
  void* context;
};

namespace detail {

inline constexpr std::size_t huge_page_bytes = std::size_t{1} << 21;

/// Alignment of an allocation: large ones start at a huge page.
inline std::align_val_t heap_alignment(std::size_t bytes, std::size_t alignment) {
  return std::align_val_t{bytes < huge_page_bytes ? alignment : huge_page_bytes};
}

inline void* allocate_heap(void*, std::size_t bytes, std::size_t alignment) {
  void* memory = ::operator new(bytes, heap_alignment(bytes, alignment), std::nothrow);
#if defined(__linux__)
  // Attention reads a kv head with the stride of a KV page: with 4 KiB memory pages, each step is a
  // TLB miss. madvise only advises; its failure is harmless.
  if (memory != nullptr && bytes >= huge_page_bytes) (void)madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

inline void deallocate_heap(void*, void* memory, std::size_t bytes, std::size_t alignment) {
  ::operator delete(memory, heap_alignment(bytes, alignment));
}

}  // namespace detail

/// Uses the global aligned operator new; asks Linux for huge pages for 2 MiB or more.
inline Allocator default_allocator() {
  return {detail::allocate_heap, detail::deallocate_heap, nullptr};
}

}  // namespace kvtilt
