// SPDX-License-Identifier: MIT
/// One code at a time in the order of the GPU (cuda/page/fragment_order.hpp).
#pragma once

#include <kvtilt/cuda/page/fragment_order.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::test {

/// Reads one code, 1 to 8 bits.
constexpr int read_fragment_code(Role role, const std::uint8_t* codes, CodeMatrix matrix, int bits,
                                 int outer, int inner) {
  int code = 0;
  const Planes split = planes(bits);
  for (int plane = 0; plane < split.count; ++plane) {
    const int width = split.width[plane];
    const cuda::WordPosition at = cuda::word_position(role, matrix, width, outer, inner);
    const int byte = codes[at.byte + static_cast<std::size_t>(at.shift / 8)];
    code = (code << width) | ((byte >> (at.shift % 8)) & ((1 << width) - 1));
    codes += cuda::fragment_plane_bytes(matrix, width);
  }
  return code;
}

/// Writes one code, 1 to 8 bits. Its bits must be zeros before: they are set with OR.
constexpr void write_fragment_code(Role role, std::uint8_t* codes, CodeMatrix matrix, int bits,
                                   int outer, int inner, int code) {
  const Planes split = planes(bits);
  int below = bits;
  for (int plane = 0; plane < split.count; ++plane) {
    const int width = split.width[plane];
    below -= width;
    const cuda::WordPosition at = cuda::word_position(role, matrix, width, outer, inner);
    const int field = (code >> below) & ((1 << width) - 1);
    std::uint8_t& byte = codes[at.byte + static_cast<std::size_t>(at.shift / 8)];
    byte = static_cast<std::uint8_t>(byte | (field << (at.shift % 8)));
    codes += cuda::fragment_plane_bytes(matrix, width);
  }
}

}  // namespace kvtilt::test
