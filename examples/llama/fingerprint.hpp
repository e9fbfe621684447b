// SPDX-License-Identifier: MIT
// A hash that tells models apart: see kvtilt::CacheOptions::fingerprint.
#pragma once

#include <bit>
#include <cstdint>
#include <span>

namespace llama {

/// FNV-1a over 32-bit words; the order of what is added counts. About 1 s for 10^9 numbers.
class Fingerprint {
 public:
  void add(std::uint32_t word) { hash_ = (hash_ ^ word) * 0x100000001b3u; }
  void add(float number) { add(std::bit_cast<std::uint32_t>(number)); }
  void add(std::span<const float> numbers) {
    for (const float x : numbers) add(x);
  }

  [[nodiscard]] std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace llama
