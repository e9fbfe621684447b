// SPDX-License-Identifier: MIT
/// Operands of the tensor cores: tiles in 16 bits, and packed words turned into registers. Those of
/// quantized tensors hold fp16 subnormals: codes times 2^-24, times a power of two that depends only
/// on the place in the fragment. That takes one AND per register and no conversion; users of the
/// registers divide by the powers.
#pragma once

#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/words.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace kvtilt::cuda {

/// A lane's elements of a 16-bit tile: R0 to R3.
struct [[gnu::may_alias]] alignas(16) Fragment {
  std::uint32_t r[4];
};

inline constexpr int fragment_tile_bytes = warp_lanes * static_cast<int>(sizeof(Fragment));
/// A run of four words of a plane, of all lanes.
inline constexpr int word_run_bytes = warp_lanes * static_cast<int>(sizeof(Words));

/// A 16-bit tensor in fragment order.
struct HalfTiles {
  Role role;
  const std::byte* data;
  int outer_tiles;
  int inner_tiles;

  [[nodiscard]] KVTILT_HD int index(int outer, int inner) const {
    return role == Role::Keys ? outer * inner_tiles + inner : inner * outer_tiles + outer;
  }
  [[nodiscard]] KVTILT_HD Fragment load(int tile, int lane) const {
    return reinterpret_cast<const Fragment*>(data + tile * fragment_tile_bytes)[lane];
  }
};

/// Powers of two that scale a code of `bits` bits by its place: those in odd registers (the odd
/// outer neighbour) are times 2^outer_shift, those in R2 and R3 times 2^inner_shift. With a single
/// plane they are the places of the stored fields. Any code stays below 2^10, a subnormal.
KVTILT_HD constexpr int outer_shift(int bits) { return bits > 6 ? 0 : bits == 1 ? 2 : 4; }
KVTILT_HD constexpr int inner_shift(int bits) {
  return bits == 1 ? 1 : bits == 2 || bits == 3 ? 2 : 0;
}

/// Tiles whose fields of a plane are in one Words of a lane.
KVTILT_HD constexpr int tiles_in_words(int width) { return 16 / width; }

/// Bytes 1 and 3 of a word, each in the low byte of its half.
KVTILT_HD inline std::uint32_t odd_bytes(std::uint32_t word) {
  return permute_bytes(word, 0, 0x4341);
}

/// Shifts a word to the left, or to the right if `places` is negative.
KVTILT_HD constexpr std::uint32_t moved(std::uint32_t word, int places) {
  return places < 0 ? word >> -places : word << places;
}

/// Reads the codes of a tensor tile by tile, as registers of subnormals scaled by outer_shift() and
/// inner_shift(). Cost: with a single plane one AND per register and at most one shift per two
/// registers, otherwise two instructions and about one shift per register and plane.
///
/// Bits   1 to 8; the planes are contiguous
/// Tiles  of the tensor; words of a lane fill runs of four
/// Left   bits of the planes that are still to be read
template <int Bits, int Tiles, int Left = Bits>
class TileReader {
 public:
  static constexpr int width = planes(Left).width[0];
  static_assert(Tiles % tiles_in_words(width) == 0,
                "every lane loads its codes 16 bytes at a time");

  /// codes  the lane's first 16 bytes
  /// index  of the tile: a constant once loops are unrolled
  KVTILT_HD void read(const std::byte* codes, int index, std::uint32_t (&a)[4]) {
    const int run = index / tiles_in_words(width);
    if (run != loaded_) words_ = load_words(codes + run * word_run_bytes);
    loaded_ = run;
    KVTILT_DEVICE_UNROLL
    for (int reg = 0; reg < 4; ++reg) {
      const LaneField from = lane_field(width, index % tiles_in_words(width), reg);
      const std::uint32_t word = words_.word[from.word];
      const int to = Left - width + reg % 2 * outer_shift(Bits) + reg / 2 * inner_shift(Bits);
      const std::uint32_t mask = (((1u << width) - 1) * 0x10001u) << to;
      const std::uint32_t field = moved(word, to - from.shift) & mask;
      if constexpr (Left < Bits)
        a[reg] |= field;
      else
        a[reg] = width == 8 && reg % 2 == 1 ? odd_bytes(word) : field;
    }
    if constexpr (Left > width) behind_.read(codes + Tiles * width * warp_lanes, index, a);
  }

 private:
  struct Nothing {};

  Words words_;
  int loaded_ = -1;
  std::conditional_t<(Left > width), TileReader<Bits, Tiles, (Left > width ? Left - width : 1)>,
                     Nothing>
      behind_;
};

/// Decodes two codes to fp16: z + s code with one rounding. Instead of infinity it returns 65504,
/// the largest value that can have been stored: scales are rounded up, so the last code may decode
/// to more than the group's maximum, by 2^-10 of the range.
KVTILT_HD inline std::uint32_t decode_value(std::uint32_t code, std::uint32_t scale,
                                            std::uint32_t minimum) {
  return min_halves(fma_halves(code, scale, minimum), 0x7bff7bffu);
}

/// Bits of the fp16 2^exponent, for -24 to 15.
KVTILT_HD constexpr std::uint32_t half_power(int exponent) {
  return exponent >= -14 ? static_cast<std::uint32_t>(exponent + 15) << 10 : 1u << (exponent + 24);
}

/// 2^exponent, for -126 to 127.
KVTILT_HD constexpr float float_power(int exponent) {
  return bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
}

}  // namespace kvtilt::cuda
