// SPDX-License-Identifier: MIT
/// An allocator that counts, fails on demand and hands out memory full of NaN patterns.
#pragma once

#include <kvtilt/cache/allocator.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace kvtilt::test {

/// Must outlive its users. For one thread at a time.
class CountingAllocator {
 public:
  std::size_t calls = 0;           ///< all calls, refused ones included
  std::size_t bytes = 0;           ///< handed out and not yet returned
  std::size_t blocks = 0;          ///< likewise
  bool mismatched = false;         ///< something came back with another size or alignment
  std::int64_t refuse_after = -1;  ///< this many more calls succeed, then all fail; -1: never
  bool refuse_once = false;        ///< only the first of them fails
  std::uint16_t poison = 0xffff;   ///< fills new memory; NaN as fp16 and as float32

  CountingAllocator() = default;
  CountingAllocator(const CountingAllocator&) = delete;
  CountingAllocator& operator=(const CountingAllocator&) = delete;

  [[nodiscard]] Allocator get() {
    return {[](void* self, std::size_t size, std::size_t alignment) {
              return static_cast<CountingAllocator*>(self)->allocate(size, alignment);
            },
            [](void* self, void* memory, std::size_t size, std::size_t alignment) {
              static_cast<CountingAllocator*>(self)->deallocate(memory, size, alignment);
            },
            this};
  }

 private:
  struct Header {
    std::size_t size;
    std::size_t alignment;
  };
  static constexpr std::size_t header_room = 128;  // a multiple of every alignment asked for

  void* allocate(std::size_t size, std::size_t alignment) {
    ++calls;
    if (refuse_after == 0) {
      if (refuse_once) refuse_after = -1;
      return nullptr;
    }
    if (refuse_after > 0) --refuse_after;
    auto* memory =
        static_cast<std::byte*>(::operator new (header_room + size, std::align_val_t{header_room}));
    const Header header{size, alignment};
    std::memcpy(memory, &header, sizeof header);
    std::byte* user = memory + header_room;
    for (std::size_t i = 0; i + 1 < size; i += 2) std::memcpy(user + i, &poison, 2);
    bytes += size;
    ++blocks;
    return user;
  }

  void deallocate(void* user, std::size_t size, std::size_t alignment) {
    std::byte* memory = static_cast<std::byte*>(user) - header_room;
    Header header{};
    std::memcpy(&header, memory, sizeof header);
    mismatched = mismatched || header.size != size || header.alignment != alignment;
    bytes -= header.size;
    --blocks;
    ::operator delete (memory, std::align_val_t{header_room});
  }
};

}  // namespace kvtilt::test
