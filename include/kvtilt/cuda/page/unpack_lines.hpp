// SPDX-License-Identifier: MIT
/// Unpacks whole quantized tensors of a page to 16-bit rows in whole lines of memory: 64 channels.
/// Straight from tiles, a warp would store sectors of 32 bytes of eight rows at a time, each of
/// which costs the memory as much as a line; so each warp collects rows in shared memory first.
#pragma once

#include <kvtilt/cuda/page/decode_tiles.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/output_rows.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/cuda/words.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Shared memory of a warp: rows of 64 channels. The pitch keeps what lanes store to eight rows in
/// different banks.
inline constexpr int line_rows = 32;
inline constexpr int line_pitch = 144;
inline constexpr int line_buffer_bytes = line_rows * line_pitch;

/// Whether unpack_lines() supports a tensor: 2, 4 or 8 bits, keys per channel or values per token,
/// a multiple of 64 channels, and no group ends inside what a warp takes at a time.
template <Role R>
KVTILT_HD bool fills_lines(const TensorLayout& tensor) {
  const CodeMatrix matrix = tensor.matrix;
  const int bits = tensor.format.bits;
  const int group = tensor.format.group;
  if ((bits != 2 && bits != 4 && bits != 8) || !tensor.group_along_outer) return false;
  if constexpr (R == Role::Keys)
    return matrix.inner % 64 == 0 && matrix.outer % 32 == 0 && group % 32 == 0;
  return matrix.outer % 64 == 0 && (group % 64 == 0 || group >= matrix.outer);
}

namespace detail {

/// Bytes by which value rows from the eighth on are shifted: lanes store to rows 4 apart, and those
/// 8 apart would be in the same bank.
inline constexpr int value_skew = 32;

/// Stores the rows of a warp's buffer to `to`, once all lanes have filled it; then it may be
/// refilled.
template <int Rows, int Skew, class T, class Threads>
KVTILT_HD void store_lines(const Threads& threads, const std::byte* buffer, T* to,
                           std::int64_t stride) {
  const int lane = threads.lane();
  threads.sync_warp();
  const std::byte* from = buffer + lane / 8 * line_pitch + lane % 8 * 16;
  to += lane / 8 * stride + lane % 8 * 8;
  KVTILT_DEVICE_UNROLL
  for (int row = 0; row < Rows; row += 4) {
    *reinterpret_cast<Words*>(to) = load_words(from + row * line_pitch + row / 8 * Skew);
    to += 4 * stride;
  }
  threads.sync_warp();
}

/// Unpacks keys: a warp takes 32 tokens x 64 channels at a time, two by four tiles.
template <int Width, class T, class Threads>
KVTILT_HD void unpack_key_lines(const Threads& threads, const TensorLayout& tensor,
                                const std::byte* block, const OutputRows<T>& rows,
                                std::byte* buffer) {
  constexpr int count = Width / 2;              // words of two tiles
  constexpr int together = Width == 8 ? 2 : 4;  // loads in flight: as registers allow
  const int lane = threads.lane();
  const CodeMatrix matrix = tensor.matrix;
  const int outer_tiles = tiles_along(matrix.outer);
  const int pairs = outer_tiles / 2;
  const int group_tiles = tiles_along(tensor.format.group);
  const int warps = threads.thread_count() / warp_lanes;
  std::byte* const mine = buffer + lane / 4 * 2 * line_pitch + lane % 4 * 8;
  int channel = 0;
  KVTILT_DEVICE_LOOP
  for (int pair = threads.warp();; pair += warps) {
    KVTILT_DEVICE_LOOP
    for (; pair >= pairs; pair -= pairs) channel += 64;
    if (channel >= matrix.inner) return;
    const F16* entries =
        reinterpret_cast<const F16*>(block + tensor.metadata) + channel + lane % 4 * 4;
    KVTILT_DEVICE_LOOP
    for (int end = group_tiles; end <= 2 * pair; end += group_tiles) entries += 2 * matrix.inner;
    KVTILT_DEVICE_LOOP
    for (int first = 0; first < 4; first += together) {
      WordPair scales_of[together];
      WordPair minima_of[together];
      WordRun<count> runs[together];
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < together; ++i) {
        const F16* at = entries + (first + i) * tile_extent;
        scales_of[i] = load_words<2>(at);
        minima_of[i] = load_words<2>(at + matrix.inner);
        const int tile = (channel / tile_extent + first + i) * outer_tiles + 2 * pair;
        const int word = tile * Width / 4;
        runs[i] = load_words<count>(block + tensor.codes +
                                    ((word / 4 * warp_lanes + lane) * 4 + word % 4) * 4);
      }
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < together; ++i) {
        std::uint32_t tiles[2][4];
        split_words<Width, true, 2>(runs[i].word, tiles);
        const LaneScales scales(ScaleEntries(scales_of[i], minima_of[i]));
        std::byte* const to = mine + (first + i) * 32;
        KVTILT_DEVICE_UNROLL
        for (int tile = 0; tile < 2; ++tile) {
          TileNumbers numbers(Role::Keys, tiles[tile]);
          numbers.decode(scales, true);
          KVTILT_DEVICE_UNROLL
          for (int row = 0; row < 2; ++row)
            rows.store_aligned(reinterpret_cast<T*>(to + (tile * tile_extent + row) * line_pitch),
                               numbers.x[row]);
        }
      }
    }
    store_lines<2 * tile_extent, 0>(threads, buffer, rows.at(2 * pair * tile_extent, channel),
                                    rows.stride());
  }
}

/// Unpacks values: a warp takes 16 tokens x 64 channels at a time, four tiles, for which a lane's
/// scales are the same.
template <int Width, class T, class Threads>
KVTILT_HD void unpack_value_lines(const Threads& threads, const TensorLayout& tensor,
                                  const std::byte* block, const OutputRows<T>& rows,
                                  std::byte* buffer) {
  const int lane = threads.lane();
  const CodeMatrix matrix = tensor.matrix;
  const int outer_tiles = tiles_along(matrix.outer);
  const int inner_tiles = tiles_along(matrix.inner);
  const int warps = threads.thread_count() / warp_lanes;
  std::byte* const mine =
      buffer + lane % 4 * 4 * line_pitch + lane % 4 / 2 * value_skew + lane / 4 * 4;
  KVTILT_DEVICE_LOOP
  for (int inner_tile = threads.warp(); inner_tile < inner_tiles; inner_tile += warps) {
    const F16* entries = reinterpret_cast<const F16*>(block + tensor.metadata) +
                         inner_tile * tile_extent + lane % 4 * 4;
    int left = tensor.format.group;
    KVTILT_DEVICE_LOOP
    for (int outer_tile = 0; outer_tile < outer_tiles; outer_tile += decoded_tiles) {
      const ScaleEntries loaded(entries, matrix.inner);
      CodeTiles tiles;
      read_whole_tiles<Width>(block + tensor.codes, matrix, inner_tile * outer_tiles + outer_tile,
                              lane, tiles);
      const LaneScales scales(loaded);
      KVTILT_DEVICE_UNROLL
      for (int tile = 0; tile < decoded_tiles; ++tile) {
        TileNumbers numbers(Role::Values, tiles[tile]);
        numbers.decode(scales, true);
        KVTILT_DEVICE_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float pair[2] = {numbers.x[0][i], numbers.x[1][i]};
          rows.store_aligned(reinterpret_cast<T*>(mine + i * line_pitch + tile * 32), pair);
        }
      }
      store_lines<tile_extent, value_skew>(
          threads, buffer, rows.at(inner_tile * tile_extent, outer_tile * tile_extent),
          rows.stride());
      left -= decoded_tiles * tile_extent;
      if (left <= 0) {
        left = tensor.format.group;
        entries += 2 * matrix.inner;
      }
    }
  }
}

template <Role R, int Width, class T, class Threads>
KVTILT_HD void unpack_tensor_lines(const Threads& threads, const TensorLayout& tensor,
                                   const std::byte* block, const OutputRows<T>& rows,
                                   std::byte* buffer) {
  if constexpr (R == Role::Keys)
    unpack_key_lines<Width>(threads, tensor, block, rows, buffer);
  else
    unpack_value_lines<Width>(threads, tensor, block, rows, buffer);
}

/// Unpacks all tokens of a tensor that fills_lines() to rows that are aligned_to_16().
///
/// block   of the head in the page
/// buffer  shared memory of the warp, line_buffer_bytes, 16-byte aligned
template <Role R, class T, class Threads>
KVTILT_HD void unpack_lines(const Threads& threads, const TensorLayout& tensor,
                            const std::byte* block, const OutputRows<T>& rows, std::byte* buffer) {
  static_assert(sizeof(T) == 2);
  if (tensor.format.bits == 8)
    unpack_tensor_lines<R, 8>(threads, tensor, block, rows, buffer);
  else if (tensor.format.bits == 4)
    unpack_tensor_lines<R, 4>(threads, tensor, block, rows, buffer);
  else
    unpack_tensor_lines<R, 2>(threads, tensor, block, rows, buffer);
}

}  // namespace detail

}  // namespace kvtilt::cuda
