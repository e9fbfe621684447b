// SPDX-License-Identifier: MIT
/// Loads the scales and minima with which codes are decoded fragment by fragment.
#pragma once

#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/cuda/words.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// A lane's scales, or minima, for one tile: pair[i] has those of the two elements in register Ri.
template <Role role>
struct FragmentScales {
  std::uint32_t pair[4];

  /// Bytes from a tile's scales to the lane's.
  KVTILT_HD static constexpr int lane_offset(int lane, bool inner) {
    return inner ? lane % 4 * 8 : lane / 4 * 4;
  }

  /// inner  whether scales run along the inner axis: the two halves of a register then differ, and
  ///        outer neighbours share scales. Otherwise R0 and R2 have one scale, R1 and R3 another
  KVTILT_HD static FragmentScales load(const std::byte* from, bool inner) {
    if (inner) {
      const std::uint64_t four = load_double_word(from);
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
