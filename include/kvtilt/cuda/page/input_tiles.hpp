// SPDX-License-Identifier: MIT
/// Whole tiles of 16-bit rows into fragment order: the way of prompts.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fit_groups.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/group_math.hpp>
#include <kvtilt/cuda/page/input_task.hpp>
#include <kvtilt/cuda/unroll.hpp>

#include <cstddef>
#include <cstdint>

#if defined(__CUDA_ARCH__)
#include <cuda_runtime.h>
#endif

namespace kvtilt::cuda::detail {

KVTILT_HD inline float read_element(const TensorView& rows, std::int64_t index) {
  if (rows.type == ElementType::F32) return static_cast<const float*>(rows.data)[index];
  if (rows.type == ElementType::F16) return widen(static_cast<const F16*>(rows.data)[index]);
  return to_float(static_cast<const BF16*>(rows.data)[index]);
}

/// Bits of the largest fp16 or bf16 that is storable.
KVTILT_HD constexpr std::uint32_t limit_bits(ElementType type, float limit) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(limit);
  // 65504 and 32752 are fp16; of bf16 the largest below them is meant.
  return type == ElementType::F16 ? (((bits >> 23) - 112) << 10) | (bits >> 13 & 1023u)
                                  : bits >> 16;
}

/// Two bf16 to fp16.
KVTILT_HD inline std::uint32_t halves_of_bf16(std::uint32_t pair) {
  return pack_halves(bit_cast<float>(pair << 16), bit_cast<float>(pair & 0xffff0000u));
}

struct alignas(8) WordPair {
  std::uint32_t word[2];
};

/// From memory that no kernel of the launch writes.
KVTILT_HD inline std::uint32_t load_input(const std::uint32_t* from) {
#if defined(__CUDA_ARCH__)
  return __ldg(from);
#else
  return *from;
#endif
}
KVTILT_HD inline WordPair load_input(const WordPair* from) {
#if defined(__CUDA_ARCH__)
  const uint2 pair = __ldg(reinterpret_cast<const uint2*>(from));
  return {{pair.x, pair.y}};
#else
  return *from;
#endif
}

/// What a lane reads of a tile of 16-bit elements: 2 rows of 4 channels for keys, 4 rows of 2 for
/// values; in both cases 4 words.
template <Role R>
struct RawTile {
  std::uint32_t word[4];

  KVTILT_HD void load(const std::uint16_t* from, std::int64_t stride) {
    if constexpr (R == Role::Keys) {
      const WordPair a = load_input(reinterpret_cast<const WordPair*>(from));
      const WordPair b = load_input(reinterpret_cast<const WordPair*>(from + stride));
      word[0] = a.word[0];
      word[1] = b.word[0];
      word[2] = a.word[1];
      word[3] = b.word[1];
    } else {
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4; ++i)
        word[i] = load_input(reinterpret_cast<const std::uint32_t*>(from + i * stride));
    }
  }
  /// Not 0 if a magnitude is above the limit: it carries into the sign. `carry`: 0x7fff - limit.
  [[nodiscard]] KVTILT_HD std::uint32_t excess(std::uint32_t carry) const {
    std::uint32_t sums = 0;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) sums |= (word[i] & 0x7fff7fffu) + carry * 0x10001u;
    return sums & 0x80008000u;
  }
  KVTILT_HD void widen_bf16() {
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) word[i] = halves_of_bf16(word[i]);
  }
  [[nodiscard]] KVTILT_HD Fragment fragment() const {
    if constexpr (R == Role::Keys) return {{word[0], word[1], word[2], word[3]}};
    return {{join_low(word[0], word[2]), join_high(word[0], word[2]), join_low(word[1], word[3]),
             join_high(word[1], word[3])}};
  }
};

/// Full tiles of 16-bit elements, as one lane sees them.
template <Role R>
struct TileCopy {
  const std::uint16_t* rows;  ///< the lane's first element of tile 0
  std::int64_t stride;
  Fragment* to;  ///< the lane's of tile 0
  int channel_tiles;
  std::uint32_t inverse;  ///< 2^20 / channel_tiles, rounded up: at most 64 x 36 tiles
  std::uint32_t carry;
  bool bf16;
  std::uint32_t bad;

  /// Tiles `tile`, tile + step, ...: all are loaded before the first is stored.
  template <int Count>
  KVTILT_HD void copy(int tile, int step) {
    RawTile<R> raw[Count];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < Count; ++i) {
      const int number = tile + i * step;
      const int token_tile = static_cast<int>(static_cast<std::uint32_t>(number) * inverse >> 20);
      const int channel = (number - token_tile * channel_tiles) * tile_extent;
      raw[i].load(rows + token_tile * (tile_extent * stride) + channel, stride);
    }
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < Count; ++i) {
      bad |= raw[i].excess(carry);
      if (bf16) raw[i].widen_bf16();
      to[(tile + i * step) * warp_lanes] = raw[i].fragment();
    }
  }
};

/// Full tiles of the tokens from `first` on; slot + first and the number of tokens are multiples of
/// 16, elements have 16 bits. A warp takes a tile at a time: stores are free of bank conflicts, and
/// of global memory whole sectors are read. Returns whether this thread met an element that is not
/// storable.
template <Role R, class Threads>
KVTILT_HD bool write_tiles(const Threads& threads, const InputTask& task, int first, int tokens) {
  const int lane = threads.lane();
  const int channel_tiles = tiles_along(task.dim());
  const int tiles = tiles_along(tokens) * channel_tiles;
  const int warps = threads.thread_count() / warp_lanes;
  const std::int64_t stride = task.rows.token_stride;
  TileCopy<R> lane_copy{
      static_cast<const std::uint16_t*>(task.rows.data) + task.row(first) +
          (R == Role::Keys ? lane / 4 * 2 : lane % 4 * 4) * stride +
          (R == Role::Keys ? lane % 4 * 4 : lane / 4 * 2),
      stride,
      reinterpret_cast<Fragment*>(task.tile((task.slot + first) / tile_extent, 0)) + lane,
      channel_tiles,
      static_cast<std::uint32_t>(((1 << 20) + channel_tiles - 1) / channel_tiles),
      0x7fffu - limit_bits(task.rows.type, task.limit),
      task.rows.type == ElementType::BF16,
      0};
  constexpr int together = 4;
  int tile = threads.warp();
  KVTILT_DEVICE_LOOP
  for (; tile + (together - 1) * warps < tiles; tile += together * warps)
    lane_copy.template copy<together>(tile, warps);
  KVTILT_DEVICE_LOOP
  for (; tile < tiles; tile += warps) lane_copy.template copy<1>(tile, warps);
  return lane_copy.bad != 0;
}

}  // namespace kvtilt::cuda::detail
