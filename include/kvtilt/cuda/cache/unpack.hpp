// SPDX-License-Identifier: MIT
/// Copies tokens of one sequence out of a device cache as attention sees them, with the bits of the
/// CPU's unpack(). A block takes one kv head of one page, sink block or tail block at a time.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/cache/device_record.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/cache/sequence_pieces.hpp>
#include <kvtilt/cuda/page/decode_tiles.hpp>
#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/cuda/page/output_rows.hpp>
#include <kvtilt/cuda/page/unpack_lines.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

struct UnpackArguments {
  LayerView layer;
  int sequence;        ///< slot
  std::int64_t first;  ///< position of row 0
  std::int64_t tokens;
  /// Device memory, [tokens, kv_heads, dim], channels contiguous; no data: skipped.
  /// Values that are in the keys are keys of value_dim channels, to be unpacked by a launch of their own.
  MutableTensorView keys;
  MutableTensorView values;
};

/// The launch for values that are in the keys: launch_unpack() makes it.
inline UnpackArguments values_as_keys(const UnpackArguments& arguments) {
  UnpackArguments other = arguments;
  other.keys = arguments.values;
  other.values = {};
  return other;
}

inline constexpr int unpack_threads = 128;
inline constexpr std::size_t unpack_shared_bytes = unpack_threads / warp_lanes * line_buffer_bytes;

/// Blocks for each kv head: one for each page that `tokens` tokens can touch, if pages are full.
KVTILT_HD constexpr int unpack_units(const LayerView& layer, std::int64_t tokens) {
  return 3 + static_cast<int>(tokens / layer.page_tokens);
}

namespace detail {

/// Stores the numbers of a tile that are in slots `slot` to slot + count - 1, the first to row 0.
template <Role R, class T>
KVTILT_HD void store_tile(const TileNumbers& numbers, int outer_tile, int inner_tile, int lane,
                          int slot, int count, const OutputRows<T>& rows) {
  const int outer = outer_tile * tile_extent + lane / 4 * 2;
  const int inner = inner_tile * tile_extent + lane % 4 * 4;
  if constexpr (R == Role::Keys) {
    KVTILT_DEVICE_UNROLL
    for (int row = 0; row < 2; ++row) {
      const int token = outer + row - slot;
      if (token >= 0 && token < count) rows.template store<4>(token, inner, numbers.x[row]);
    }
  } else {
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int token = inner + i - slot;
      const float pair[2] = {numbers.x[0][i], numbers.x[1][i]};
      if (token >= 0 && token < count) rows.template store<2>(token, outer, pair);
    }
  }
}

/// Whether unpack_whole() serves this tensor and these slots.
template <Role R>
KVTILT_HD bool unpacks_whole(const TensorLayout& tensor, int slot, int count) {
  const CodeMatrix matrix = tensor.matrix;
  const int group = tensor.format.group;
  const int bits = tensor.format.bits;
  return (bits == 2 || bits == 4 || bits == 8) && tensor.group_along_outer && slot == 0 &&
         count == (R == Role::Keys ? matrix.outer : matrix.inner) &&
         matrix.outer % (decoded_tiles * tile_extent) == 0 &&
         (group % (decoded_tiles * tile_extent) == 0 || group >= matrix.outer);
}

/// Unpacks all tokens of a block, keys per channel or values per token, to aligned rows. A warp
/// takes four tiles at a time along outer, which share a lane's four scales.
template <Role R, int Width, class T, class Threads>
KVTILT_HD void unpack_whole(const Threads& threads, const TensorLayout& tensor,
                            const std::byte* block, const OutputRows<T>& rows) {
  constexpr bool keys = R == Role::Keys;
  const int lane = threads.lane();
  const std::byte* codes = block + tensor.codes;
  const CodeMatrix matrix = tensor.matrix;
  const int runs_in_band = tensor.format.group / (decoded_tiles * tile_extent);
  const int outer_tiles = tiles_along(matrix.outer);
  const int inner_tiles = tiles_along(matrix.inner);
  const int warps = threads.thread_count() / warp_lanes;
  const std::int64_t stride = rows.stride();
  KVTILT_DEVICE_LOOP
  for (int inner_tile = threads.warp(); inner_tile < inner_tiles; inner_tile += warps) {
    const int inner = inner_tile * tile_extent + lane % 4 * 4;
    const int outer = lane / 4 * 2;
    const F16* entries = reinterpret_cast<const F16*>(block + tensor.metadata) + inner;
    T* to = keys ? rows.at(outer, inner) : rows.at(inner, outer);
    int runs_left = runs_in_band;
    KVTILT_DEVICE_LOOP
    for (int outer_tile = 0; outer_tile < outer_tiles; outer_tile += decoded_tiles) {
      // Loaded anew for each four tiles, to be in flight together with their codes.
      const ScaleEntries loaded(entries, matrix.inner);
      CodeTiles tiles;
      read_whole_tiles<Width>(codes, matrix, inner_tile * outer_tiles + outer_tile, lane, tiles);
      LaneScales scales(loaded);
      KVTILT_DEVICE_UNROLL
      for (int tile = 0; tile < decoded_tiles; ++tile) {
        TileNumbers numbers(R, tiles[tile]);
        numbers.decode(scales, true);
        if constexpr (keys) {
          rows.store_aligned(to, numbers.x[0]);
          rows.store_aligned(to + stride, numbers.x[1]);
          to += tile_extent * stride;
        } else {
          KVTILT_DEVICE_UNROLL
          for (int i = 0; i < 4; ++i) {
            const float pair[2] = {numbers.x[0][i], numbers.x[1][i]};
            rows.store_aligned(to + i * stride, pair);
          }
          to += tile_extent;
        }
      }
      if (--runs_left == 0) {
        runs_left = runs_in_band;
        entries += 2 * matrix.inner;
      }
    }
  }
}

/// Unpacks a tensor by the fast path that serves it. Returns false, and does nothing, if none does.
template <Role R, class T, class Threads>
KVTILT_HD bool unpack_whole_tensor(const Threads& threads, const TensorLayout& tensor,
                                   const std::byte* block, int slot, int count,
                                   const OutputRows<T>& rows) {
  if constexpr (sizeof(T) == 2) {
    const bool all =
        slot == 0 && count == (R == Role::Keys ? tensor.matrix.outer : tensor.matrix.inner);
    if (all && fills_lines<R>(tensor) && rows.aligned_to_16()) {
      unpack_lines<R>(threads, tensor, block, rows,
                      threads.shared() + threads.warp() * line_buffer_bytes);
      return true;
    }
  }
  if (!unpacks_whole<R>(tensor, slot, count) || !rows.aligned()) return false;
  if (tensor.format.bits == 8)
    unpack_whole<R, 8>(threads, tensor, block, rows);
  else if (tensor.format.bits == 4)
    unpack_whole<R, 4>(threads, tensor, block, rows);
  else
    unpack_whole<R, 2>(threads, tensor, block, rows);
  return true;
}

template <Role R, class Threads>
KVTILT_HD bool unpack_whole_rows(const Threads& threads, const TensorLayout& tensor,
                                 const std::byte* block, int slot, int count,
                                 const MutableTensorView& rows, std::int64_t first_row, int head) {
  if (rows.type == ElementType::F16)
    return unpack_whole_tensor<R>(threads, tensor, block, slot, count,
                                  OutputRows<F16>(rows, first_row, head));
  if (rows.type == ElementType::BF16)
    return unpack_whole_tensor<R>(threads, tensor, block, slot, count,
                                  OutputRows<BF16>(rows, first_row, head));
  return unpack_whole_tensor<R>(threads, tensor, block, slot, count,
                                OutputRows<float>(rows, first_row, head));
}

/// Unpacks any slots. Of keys, the first `channels`: values may be in them.
template <Role R, class T, class Threads>
KVTILT_HD void unpack_tensor(const Threads& threads, const TensorLayout& tensor,
                             const std::byte* block, int slot, int count, int channels,
                             const OutputRows<T>& rows) {
  const int lane = threads.lane();
  const int outer_tiles = tiles_along(tensor.matrix.outer);
  const int inner_tiles = tiles_along(tensor.matrix.inner);
  const int tiles = outer_tiles * inner_tiles;
  const int warps = threads.thread_count() / warp_lanes;
  const bool quantized = tensor.format.quantized();
  const bool along_outer = tensor.group_along_outer;
  // Tiles of 16-bit keys are stored along inner first.
  const bool inner_first = R == Role::Keys && !quantized;
  const int fast_tiles = inner_first ? inner_tiles : outer_tiles;
  KVTILT_DEVICE_LOOP
  for (int first = threads.warp() * decoded_tiles; first < tiles; first += warps * decoded_tiles) {
    CodeTiles registers;
    if (quantized) {
      read_code_tiles(tensor, block, first, lane, registers);
    } else {
      const HalfTiles half{R, block + tensor.codes, outer_tiles, inner_tiles};
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < decoded_tiles; ++i) {
        const Fragment tile = first + i < tiles ? half.load(first + i, lane) : Fragment{};
        KVTILT_DEVICE_UNROLL
        for (int reg = 0; reg < 4; ++reg) registers[i][reg] = tile.r[reg];
      }
    }
    int slow = first / fast_tiles;
    int fast = first - slow * fast_tiles;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < decoded_tiles; ++i) {
      if (first + i >= tiles) break;
      const int outer_tile = inner_first ? slow : fast;
      const int inner_tile = inner_first ? fast : slow;
      if (R == Role::Values || inner_tile * tile_extent < channels) {
        TileNumbers numbers(R, registers[i]);
        if (quantized)
          numbers.decode(LaneScales(tensor, block, outer_tile, inner_tile, lane), along_outer);
        store_tile<R>(numbers, outer_tile, inner_tile, lane, slot, count, rows);
      }
      if (++fast == fast_tiles) {
        fast = 0;
        ++slow;
      }
    }
  }
}

template <Role R, class Threads>
KVTILT_HD void unpack_rows(const Threads& threads, const TensorLayout& tensor,
                           const std::byte* block, int slot, int count,
                           const MutableTensorView& rows, std::int64_t first_row, int head) {
  if (rows.type == ElementType::F16)
    unpack_tensor<R>(threads, tensor, block, slot, count, rows.dim,
                     OutputRows<F16>(rows, first_row, head));
  else if (rows.type == ElementType::BF16)
    unpack_tensor<R>(threads, tensor, block, slot, count, rows.dim,
                     OutputRows<BF16>(rows, first_row, head));
  else
    unpack_tensor<R>(threads, tensor, block, slot, count, rows.dim,
                     OutputRows<float>(rows, first_row, head));
}

/// Prefetches a quantized tensor to be read after another: codes, and one band (row) of scales.
template <class Threads>
KVTILT_HD void prefetch_tensor(const Threads& threads, const TensorLayout& tensor,
                               const std::byte* block) {
  if (!tensor.format.quantized()) return;
  constexpr int step = 64;  // memory delivers two 32-byte sectors at once
  const int end =
      static_cast<int>(tensor.metadata) + 2 * tensor.pitch() * static_cast<int>(sizeof(F16));
  KVTILT_DEVICE_LOOP
  for (int at = static_cast<int>(tensor.codes) + threads.thread() * step; at < end;
       at += threads.thread_count() * step)
    threads.prefetch(block + at);
}

/// The slots of one piece that a request wants, and the row that they start at.
struct PieceRows {
  const HeadLayout* layout;
  const std::byte* block;  ///< the head's block
  int slot;
  int count;  ///< 0 or less: none
  std::int64_t first_row;

  KVTILT_HD PieceRows(const UnpackArguments& arguments, const Piece& piece, int head)
      : layout(&arguments.layer.head(piece.kind, head)), block(piece.block + layout->offset) {
    std::int64_t from = arguments.first - piece.first_position;
    if (from < 0) from = 0;
    std::int64_t until = arguments.first + arguments.tokens - piece.first_position;
    if (until > piece.tokens) until = piece.tokens;
    slot = static_cast<int>(from);
    count = static_cast<int>(until - from);
    first_row = piece.first_position + from - arguments.first;
  }
};

}  // namespace detail

/// Body of the kernel: unpack_units() * kv_heads blocks of unpack_threads threads,
/// unpack_shared_bytes. The row of a position that was never appended, or was removed or freed, is
/// not written, and InvalidArgument is recorded.
template <class Threads>
KVTILT_HD void unpack(const Threads& threads, const UnpackArguments& arguments) {
  const LayerView& layer = arguments.layer;
  if (arguments.tokens <= 0) return;
  const SequenceState state = layer.states[arguments.sequence];
  const detail::Pieces pieces{layer, state, arguments.sequence};
  const int unit = threads.block() / layer.kv_heads;
  const int head = threads.block() - unit * layer.kv_heads;
  const int units = threads.block_count() / layer.kv_heads;
  const std::int64_t end = arguments.first + arguments.tokens;
  const int count = pieces.count();
  const int start = pieces.at(arguments.first);
  const bool reports = head == 0 && threads.thread() == 0;
  const auto report = [&](std::int64_t position) {
    record_error(
        threads, layer.records,
        sequence_fault(DeviceFault::UnpackRefused, layer.layer, arguments.sequence, position));
  };
  if (reports && unit == 0 && (start >= count || pieces[start].first_position > arguments.first))
    report(arguments.first);
  // A block has one piece unless pages hold few tokens. The fast path is outside the loop: what the
  // compiler moves out of a loop takes registers.
  bool keys_done = arguments.keys.data == nullptr;
  bool values_done = arguments.values.data == nullptr;
  if (start + unit < count) {
    const detail::PieceRows wanted(arguments, pieces[start + unit], head);
    if (!keys_done && !values_done)
      detail::prefetch_tensor(threads, wanted.layout->value, wanted.block);
    if (!keys_done && arguments.keys.dim == layer.key_dim)
      keys_done = detail::unpack_whole_rows<Role::Keys>(threads, wanted.layout->key, wanted.block,
                                                        wanted.slot, wanted.count, arguments.keys,
                                                        wanted.first_row, head);
    if (!values_done)
      values_done = detail::unpack_whole_rows<Role::Values>(
          threads, wanted.layout->value, wanted.block, wanted.slot, wanted.count, arguments.values,
          wanted.first_row, head);
  }
  KVTILT_DEVICE_LOOP
  for (int index = start + unit; index < count; index += units) {
    const detail::Piece piece = pieces[index];
    if (piece.first_position >= end) return;
    if (reports && detail::gap_after(pieces, piece, index, end))
      report(piece.first_position + piece.tokens);
    const detail::PieceRows wanted(arguments, piece, head);
    if (wanted.count <= 0) continue;
    if (!keys_done)
      detail::unpack_rows<Role::Keys>(threads, wanted.layout->key, wanted.block, wanted.slot,
                                      wanted.count, arguments.keys, wanted.first_row, head);
    if (!values_done)
      detail::unpack_rows<Role::Values>(threads, wanted.layout->value, wanted.block, wanted.slot,
                                        wanted.count, arguments.values, wanted.first_row, head);
    keys_done = arguments.keys.data == nullptr;
    values_done = arguments.values.data == nullptr;
  }
}

}  // namespace kvtilt::cuda
