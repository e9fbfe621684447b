// SPDX-License-Identifier: MIT
/// A hash of one word, for checksums and for tables that must not be mistaken for others.
#pragma once

#include <kvtilt/core/config.hpp>

#include <cstdint>

namespace kvtilt {

/// Each result has one argument, and half of its bits change with any bit of that. The finalizer of
/// MurmurHash3 (A. Appleby, public domain).
KVTILT_HD constexpr std::uint64_t mix_bits(std::uint64_t number) {
  number = (number ^ number >> 33) * 0xff51afd7ed558ccdu;
  number = (number ^ number >> 33) * 0xc4ceb9fe1a85ec53u;
  return number ^ number >> 33;
}

}  // namespace kvtilt
