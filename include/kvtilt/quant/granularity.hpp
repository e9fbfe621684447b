// SPDX-License-Identifier: MIT
/// Which elements share a scale and a minimum.
#pragma once

#include <cstdint>

namespace kvtilt {

enum class Granularity : std::uint8_t {
  PerChannel,  ///< a group runs along tokens, within one channel of one kv head
  PerToken,    ///< a group runs along channels, within one token of one kv head
};

/// Most elements of a group: sums of 128 fp16 values are exact in 64-bit integers and in double.
inline constexpr int max_group = 128;

}  // namespace kvtilt
