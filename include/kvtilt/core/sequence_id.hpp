// SPDX-License-Identifier: MIT
/// The handle of a sequence, for caches in host and device memory.
#pragma once

#include <cstdint>

namespace kvtilt {

/// A sequence of a cache. A closed sequence's id never becomes valid again.
struct SequenceId {
  std::uint32_t slot = 0;
  std::uint32_t generation = 0;  ///< 0: no sequence
  friend constexpr bool operator==(const SequenceId&, const SequenceId&) = default;
};

}  // namespace kvtilt
