// SPDX-License-Identifier: MIT
/// Writes whole tiles of 16-bit input rows in fragment order: the path for prompts.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/cuda/page/group_math.hpp>
#include <kvtilt/cuda/page/input_task.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/cuda/words.hpp>

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
  // 65504 and 32752 are fp16 numbers; cut off to bf16 they give the largest one below.
  return type == ElementType::F16 ? (((bits >> 23) - 112) << 10) | (bits >> 13 & 1023u)
                                  : bits >> 16;
}

/// Two bf16 to fp16.
KVTILT_HD inline std::uint32_t halves_of_bf16(std::uint32_t pair) {
  return pack_halves(bit_cast<float>(pair << 16), bit_cast<float>(pair & 0xffff0000u));
}

/// A load that does not use the read-only path (ld.global.nc): this kernel may start while the
/// preceding one still writes the rows.
KVTILT_HD inline std::uint32_t load_input(const Word* from) {
#if defined(__CUDA_ARCH__)
  std::uint32_t word;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
#else
  return *from;
#endif
}
KVTILT_HD inline WordPair load_input(const WordPair* from) {
#if defined(__CUDA_ARCH__)
  WordPair pair;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(pair.word[0]), "=r"(pair.word[1])
               : "l"(from));
  return pair;
#else
  return *from;
#endif
}

/// A lane's elements of a tile, as read: 2 rows of 4 channels for keys, 4 rows of 2 for values; in
/// both cases 4 words of two 16-bit elements.
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
        word[i] = load_input(reinterpret_cast<const Word*>(from + i * stride));
    }
  }
  /// The largest magnitude in each half, as bits, `so_far` included; 0x7fff for NaN.
  [[nodiscard]] KVTILT_HD std::uint32_t most(std::uint32_t so_far) const {
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) so_far = max_magnitudes(so_far, word[i]);
    return so_far;
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

/// Distributes runs of up to four tiles, neighbours along channels, over warps.
struct TileRuns {
  static constexpr int longest = 4;
  int token_tiles;
  int channel_tiles;
  int warps;
  int token_tile = 0;
  int channel_tile;

  KVTILT_HD TileRuns(int tokens, int dim, int warp, int warps_all)
      : token_tiles(tiles_along(tokens)),
        channel_tiles(tiles_along(dim)),
        warps(warps_all),
        channel_tile(warp * longest) {}
  /// Whether this warp has another run. It subtracts, as a division takes longer.
  KVTILT_HD bool find() {
    const int padded = (channel_tiles + longest - 1) & -longest;
    KVTILT_DEVICE_LOOP
    while (channel_tile >= padded) {
      channel_tile -= padded;
      ++token_tile;
    }
    return token_tile < token_tiles;
  }
  KVTILT_HD void next() { channel_tile += warps * longest; }
  [[nodiscard]] KVTILT_HD int length() const {
    return channel_tiles - channel_tile < longest ? channel_tiles - channel_tile : longest;
  }
};

/// Copies a lane's part of tiles of 16-bit elements.
template <Role R>
struct TileCopy {
  std::int64_t stride;
  bool bf16;
  std::uint32_t most;

  /// Copies `Count` neighbouring tiles along channels: loads all before it stores the first.
  template <int Count>
  KVTILT_HD void copy(const std::uint16_t* from, Fragment* to) {
    RawTile<R> raw[Count];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < Count; ++i) raw[i].load(from + i * tile_extent, stride);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < Count; ++i) most = raw[i].most(most);
    if (bf16) {
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < Count; ++i) raw[i].widen_bf16();
    }
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < Count; ++i) to[i * warp_lanes] = raw[i].fragment();
  }
};

/// Writes full tiles of `tokens` tokens from `first` on; slot + first and `tokens` are multiples of
/// 16, elements have 16 bits. A warp takes four tiles at a time: it reads whole sectors of global
/// memory and stores without bank conflicts. Returns whether this thread found an element that
/// cannot be stored.
template <Role R, class Threads>
KVTILT_HD bool write_tiles(const Threads& threads, const InputTask& task, int first, int tokens) {
  const int lane = threads.lane();
  const std::int64_t stride = task.rows.token_stride;
  const std::uint16_t* const rows = static_cast<const std::uint16_t*>(task.rows.data) +
                                    task.row(first) +
                                    (R == Role::Keys ? lane / 4 * 2 : lane % 4 * 4) * stride +
                                    (R == Role::Keys ? lane % 4 * 4 : lane / 4 * 2);
  Fragment* const slots =
      reinterpret_cast<Fragment*>(task.tile(tiles_along(task.slot + first), 0)) + lane;
  TileCopy<R> lane_copy{stride, task.rows.type == ElementType::BF16, 0};
  TileRuns run(tokens, task.dim(), threads.warp(), threads.thread_count() / warp_lanes);
  KVTILT_DEVICE_LOOP
  for (; run.find(); run.next()) {
    const std::uint16_t* from =
        rows + run.token_tile * (tile_extent * stride) + run.channel_tile * tile_extent;
    Fragment* to = slots + (run.token_tile * run.channel_tiles + run.channel_tile) * warp_lanes;
    if (run.length() == TileRuns::longest) {
      lane_copy.template copy<TileRuns::longest>(from, to);
      continue;
    }
    KVTILT_DEVICE_LOOP
    for (int i = 0; i < run.length(); ++i)
      lane_copy.template copy<1>(from + i * tile_extent, to + i * warp_lanes);
  }
  const std::uint32_t limit = limit_bits(task.rows.type, task.limit);
  return (lane_copy.most & 0xffffu) > limit || lane_copy.most >> 16 > limit;
}

}  // namespace kvtilt::cuda::detail
