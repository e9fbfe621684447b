// SPDX-License-Identifier: MIT
/// Scales and minima of codes that are decoded fragment by fragment.
#pragma once

#include <kvtilt/cuda/page/fragments.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Scales or minima of a lane's part of a tile, two by two as its registers want them.
template <Role role>
struct FragmentScales {
  std::uint32_t pair[4];

  /// Bytes from those of a tile to those of the lane.
  KVTILT_HD static constexpr int lane_offset(int lane, bool inner) {
    return inner ? lane % 4 * 8 : lane / 4 * 4;
  }

  /// inner  they follow the inner axis: a half each of every register, and outer neighbours share
  ///        them. Otherwise they follow the outer one: one for R0 and R2, one for R1 and R3
  KVTILT_HD static FragmentScales load(const std::byte* from, bool inner) {
    if (inner) {
      const std::uint64_t four = *reinterpret_cast<const std::uint64_t*>(from);
      const std::uint32_t low = static_cast<std::uint32_t>(four);
      const std::uint32_t high = static_cast<std::uint32_t>(four >> 32);
      const std::uint32_t even = role == Role::Keys ? low : join_low(low, high);
      const std::uint32_t odd = role == Role::Keys ? high : join_high(low, high);
      return {{even, even, odd, odd}};
    }
    const std::uint32_t two = load_word(from);
    const std::uint32_t even = permute_bytes(two, 0, 0x1010u);
    const std::uint32_t odd = permute_bytes(two, 0, 0x3232u);
    return {{even, odd, even, odd}};
  }
};

}  // namespace kvtilt::cuda
