// SPDX-License-Identifier: MIT
/// Writes single codes in the order of page/bit_pack.hpp.
#pragma once

#include <kvtilt/page/bit_pack.hpp>

#include <cstdint>

namespace kvtilt::test {

/// Writes one code, 1 to 8 bits. Its bits must be zeros before: they are set with OR.
inline void write_code(std::uint8_t* codes, CodeMatrix matrix, int bits, int outer, int inner,
                       int code) {
  const Planes split = planes(bits);
  int below = bits;
  for (int plane = 0; plane < split.count; ++plane) {
    const int width = split.width[plane];
    below -= width;
    const FieldPosition at = field_position(matrix, width, outer, inner);
    const int field = (code >> below) & ((1 << width) - 1);
    codes[at.byte] = static_cast<std::uint8_t>(codes[at.byte] | (field << at.shift));
    codes += plane_bytes(matrix, width);
  }
}

}  // namespace kvtilt::test
