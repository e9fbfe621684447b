// SPDX-License-Identifier: MIT
// Float buffers aligned to cache lines. Vectorized sums add in an order that depends on the address
// of the first number: a fixed alignment makes the figures of a text reproducible.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace llama {

template <class T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t alignment{64};

  CacheLineAllocator() = default;
  template <class Other>
  CacheLineAllocator(const CacheLineAllocator<Other>& /*other*/) {}

  T* allocate(std::size_t count) {
    if (count > static_cast<std::size_t>(-1) / sizeof(T)) throw std::bad_array_new_length();
    return static_cast<T*>(::operator new(count * sizeof(T), alignment));
  }
  void deallocate(T* data, std::size_t /*count*/) { ::operator delete(data, alignment); }

  friend bool operator==(const CacheLineAllocator&, const CacheLineAllocator&) { return true; }
};

using Floats = std::vector<float, CacheLineAllocator<float>>;

}  // namespace llama
