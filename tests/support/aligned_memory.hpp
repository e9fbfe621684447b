// SPDX-License-Identifier: MIT
/// Memory for pages and blocks of tokens, aligned as pools align theirs.
#pragma once

#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::test {

/// Initially filled with NaN patterns.
class AlignedMemory {
 public:
  explicit AlignedMemory(std::size_t bytes)
      : bytes_(bytes), memory_(bytes + page_alignment, std::byte{0xff}) {}
  std::byte* data() {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    return memory_.data() + (page_alignment - address % page_alignment);
  }
  [[nodiscard]] std::vector<std::byte> copy() { return {data(), data() + bytes_}; }

 private:
  std::size_t bytes_;
  std::vector<std::byte> memory_;
};

}  // namespace kvtilt::test
