// SPDX-License-Identifier: MIT
/// Where a cache's memory comes from.
#pragma once

#include <cstddef>
#include <new>

namespace kvtilt {

/// Bring your own memory: two functions and a context. `allocate` returns null when it is out;
/// both may be called from any thread that reserves, opens or closes a sequence.
struct Allocator {
  void* (*allocate)(void* context, std::size_t bytes, std::size_t alignment);
  void (*deallocate)(void* context, void* memory, std::size_t bytes, std::size_t alignment);
  void* context;
};

/// The global aligned operator new.
inline Allocator default_allocator() {
  return {[](void*, std::size_t bytes, std::size_t alignment) {
            return ::operator new (bytes, std::align_val_t{alignment}, std::nothrow);
          },
          [](void*, void* memory, std::size_t, std::size_t alignment) {
            ::operator delete (memory, std::align_val_t{alignment});
          },
          nullptr};
}

}  // namespace kvtilt
