// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/attention/fragment_scales.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace kvtilt::cuda {
namespace {

/// Entry i of a tile's scales is i, so each half of a register shows which entry it holds.
template <Role role>
void expect_entries(bool inner) {
  alignas(8) std::byte entries[2 * tile_extent];
  for (int i = 0; i < tile_extent; ++i) {
    const std::uint16_t entry = static_cast<std::uint16_t>(i);
    std::memcpy(entries + 2 * i, &entry, sizeof entry);
  }
  for (int outer = 0; outer < tile_extent; ++outer)
    for (int along = 0; along < tile_extent; ++along) {
      const FragmentPlace place = fragment_place(role, outer, along);
      const auto scales = FragmentScales<role>::load(
          entries + FragmentScales<role>::lane_offset(place.lane, inner), inner);
      EXPECT_EQ(scales.pair[place.reg] >> (16 * place.half) & 0xffffu,
                static_cast<std::uint32_t>(inner ? along : outer))
          << "outer " << outer << ", inner " << along;
    }
}

TEST(FragmentScales, StandWhereTheirCodesDo) {
  for (const bool inner : {false, true}) {
    expect_entries<Role::Keys>(inner);
    expect_entries<Role::Values>(inner);
  }
}

}  // namespace
}  // namespace kvtilt::cuda
