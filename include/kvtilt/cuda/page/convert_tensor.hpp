// SPDX-License-Identifier: MIT
/// Converts keys or values of a kv head on the GPU, by all threads of a block, between host order
/// (of the CPU and of disk) and device order: convert_page.hpp does the same on the host. The
/// host's side may be pinned host memory: it is read or written once, in order, 16 bytes a thread,
/// and its checksum is computed on the way. Data is reordered in shared memory.
///
/// Codes and metadata of tensors that the GPU supports fill lines of 64 bytes in either order:
/// there is no padding between or behind them.
#pragma once

#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/page/decode_tiles.hpp>
#include <kvtilt/cuda/page/encode_tiles.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/fragments.hpp>
#include <kvtilt/cuda/page/tile_map.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/cuda/words.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/page/saved_sequence.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// The block of a kv head in a saved sequence, as one thread reads or writes it, and its checksum.
template <class Byte>
struct HostBlock {
  Byte* block;               ///< 16-byte aligned
  std::uint64_t first_word;  ///< 64-bit words of the saved sequence before the block
  std::uint64_t sum = 0;     ///< saved_word_sum() of what this thread read or wrote

  /// Loads 16 bytes; `byte` is a multiple of 16.
  KVTILT_HD Words load(std::size_t byte) {
    const Words words = load_words(block + byte);
    add(byte, words);
    return words;
  }
  KVTILT_HD void store(std::size_t byte, const Words& words) {
    *reinterpret_cast<Words*>(block + byte) = words;
    add(byte, words);
  }

 private:
  KVTILT_HD void add(std::size_t byte, const Words& words) {
    const std::uint64_t index = first_word + byte / sizeof(std::uint64_t);
    for (int i = 0; i < 2; ++i)
      sum += saved_word_sum(words.word[2 * i] | std::uint64_t{words.word[2 * i + 1]} << 32,
                            index + static_cast<std::uint64_t>(i));
  }
};

namespace detail {

/// Shared memory in which a warp reorders a 16-bit tile: a row holds 16 outer x 4 inner
/// elements, 128 bytes, and the pitch avoids bank conflicts.
inline constexpr int reorder_pitch = 160;
inline constexpr int reorder_bytes = 4 * reorder_pitch;

}  // namespace detail

/// Bytes of shared memory to convert tensors of up to `elements` quantized elements, a byte for
/// each code, and any 16-bit tensor.
KVTILT_HD constexpr std::size_t convert_shared_bytes(int elements, int threads) {
  const int reordering = threads / warp_lanes * detail::reorder_bytes;
  return static_cast<std::size_t>(elements > reordering ? elements : reordering);
}

namespace detail {

/// Copies `bytes`, a multiple of 16: load(byte) and store(byte, words) take 16 each. A thread has
/// four loads in flight.
template <class Threads, class Load, class Store>
KVTILT_HD void copy_words(const Threads& threads, int bytes, Load load, Store store) {
  constexpr int together = 4;
  const int step = threads.thread_count() * static_cast<int>(sizeof(Words));
  KVTILT_DEVICE_LOOP
  for (int at = threads.thread() * static_cast<int>(sizeof(Words)); at < bytes;
       at += together * step) {
    Words words[together] = {};
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < together; ++i)
      if (at + i * step < bytes) words[i] = load(at + i * step);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < together; ++i)
      if (at + i * step < bytes) store(at + i * step, words[i]);
  }
}

/// The offset of byte `at` of a part of a host block.
KVTILT_HD constexpr std::size_t byte_offset(std::size_t part, int at) {
  return part + static_cast<std::size_t>(at);
}

/// Maps the tiles and lanes of device order to the numbers of a tensor's quads in bit_pack.hpp.
struct QuadNumbers {
  Divisor outer_tiles;
  int quads;  ///< along inner
  int tiles;

  KVTILT_HD explicit QuadNumbers(CodeMatrix matrix)
      : outer_tiles(tiles_along(matrix.outer)), quads(matrix.quads()), tiles(tile_count(matrix)) {}

  /// Number of the quad that a lane owns in a tile; tiles are counted along outer first.
  [[nodiscard]] KVTILT_HD int operator()(int tile, int lane) const {
    const int inner_tile = outer_tiles.quotient(tile);
    const int outer_tile = tile - inner_tile * outer_tiles.value;
    return outer_tile * quads + inner_tile * (tile_extent / quad_codes) + lane % 4;
  }
};

/// Selectors of permute_bytes(). In host order a quad is four codes in the bytes of a word, in
/// device order they are in two registers of a lane: R0 and R2, or R1 and R3.
struct QuadBytes {
  std::uint32_t joined;  ///< makes the quad from both registers
  std::uint32_t low;     ///< makes R0 or R1 from the quad and zero
  std::uint32_t high;    ///< makes R2 or R3 from them

  KVTILT_HD explicit QuadBytes(Role role)
      : joined(role == Role::Keys ? 0x6420 : 0x6240),
        low(role == Role::Keys ? 0x4140 : 0x4240),
        high(role == Role::Keys ? 0x4342 : 0x4341) {}
};

/// Puts all codes into shared memory as bytes, in the order of an 8-bit plane, then makes the
/// planes.
template <class Threads>
KVTILT_HD void codes_to_host(const Threads& threads, Role role, const TensorLayout& tensor,
                             const std::byte* device, HostBlock<std::byte>& host,
                             std::byte* shared) {
  const int lane = threads.lane();
  const int bits = tensor.format.bits;
  const QuadNumbers quad_number(tensor.matrix);
  const QuadBytes bytes(role);
  const int step = threads.thread_count() / warp_lanes * decoded_tiles;
  KVTILT_DEVICE_LOOP
  for (int first = threads.warp() * decoded_tiles; first < quad_number.tiles; first += step) {
    CodeTiles codes;
    read_code_tiles(tensor, device, first, lane, codes);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < decoded_tiles; ++i) {
      if (first + i >= quad_number.tiles) break;
      WordPair rows;
      KVTILT_DEVICE_UNROLL
      for (int row = 0; row < 2; ++row)
        rows.word[row] = permute_bytes(codes[i][row], codes[i][row + 2], bytes.joined);
      *reinterpret_cast<WordPair*>(shared + quad_number(first + i, lane) * line_bytes +
                                   lane / 4 * static_cast<int>(sizeof rows)) = rows;
    }
  }
  threads.sync();
  constexpr int parts = line_bytes / static_cast<int>(sizeof(Words));
  std::size_t plane = tensor.codes;
  int below = bits;
  KVTILT_DEVICE_LOOP
  for (int width = 8; width > 0; width /= 2) {
    if ((bits & width) == 0) continue;
    below -= width;
    const std::uint32_t mask = ((1u << width) - 1) * 0x01010101u;
    const int words = quad_number.tiles * (tile_extent / quad_codes) * width / 8 * parts;
    KVTILT_DEVICE_LOOP
    for (int i = threads.thread(); i < words; i += threads.thread_count()) {
      // Line i / parts of the plane: each of its fields comes from one line of bytes.
      const std::byte* from = shared + i / parts * (8 / width) * line_bytes +
                              i % parts * static_cast<int>(sizeof(Words));
      Words line{};
      KVTILT_DEVICE_LOOP
      for (int shift = 0; shift < 8; shift += width) {
        const Words field = load_words(from);
        KVTILT_DEVICE_UNROLL
        for (int w = 0; w < 4; ++w) line.word[w] |= (field.word[w] >> below & mask) << shift;
        from += line_bytes;
      }
      host.store(byte_offset(plane, i * static_cast<int>(sizeof(Words))), line);
    }
    plane += plane_bytes(tensor.matrix, width);
  }
}

/// Copies the planes to shared memory, then each lane gathers the codes that it owns.
template <class Threads>
KVTILT_HD void codes_to_device(const Threads& threads, Role role, const TensorLayout& tensor,
                               HostBlock<const std::byte>& host, std::byte* device,
                               std::byte* shared) {
  const int lane = threads.lane();
  const int bits = tensor.format.bits;
  const int code_bytes = static_cast<int>(tensor.metadata - tensor.codes);
  copy_words(
      threads, code_bytes, [&](int at) { return host.load(byte_offset(tensor.codes, at)); },
      [&](int at, const Words& words) { *reinterpret_cast<Words*>(shared + at) = words; });
  threads.sync();
  const QuadNumbers quad_number(tensor.matrix);
  const QuadBytes bytes(role);
  const int step = threads.thread_count() / warp_lanes * decoded_tiles;
  KVTILT_DEVICE_LOOP
  for (int first = threads.warp() * decoded_tiles; first < quad_number.tiles; first += step) {
    int numbers[decoded_tiles];
    std::uint32_t rows[decoded_tiles][2];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < decoded_tiles; ++i) {
      // Beyond the last tile, tile `first` once more: it is not stored.
      numbers[i] = quad_number(first + i < quad_number.tiles ? first + i : first, lane);
      rows[i][0] = rows[i][1] = 0;
    }
    const std::byte* plane = shared + lane / 4 * static_cast<int>(sizeof(WordPair));
    KVTILT_DEVICE_LOOP
    for (int width = 8; width > 0; width /= 2) {
      if ((bits & width) == 0) continue;
      const std::uint32_t mask = ((1u << width) - 1) * 0x01010101u;
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < decoded_tiles; ++i) {
        const int bit = numbers[i] * width;  // in each byte of a lane, through the plane's lines
        const WordPair words = load_words<2>(plane + bit / 8 * line_bytes);
        KVTILT_DEVICE_UNROLL
        for (int row = 0; row < 2; ++row)
          rows[i][row] = rows[i][row] << width | (words.word[row] >> bit % 8 & mask);
      }
      plane += plane_bytes(tensor.matrix, width);
    }
    TileCodes<decoded_tiles> codes;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < decoded_tiles; ++i) {
      KVTILT_DEVICE_UNROLL
      for (int row = 0; row < 2; ++row) {
        codes[i][row] = permute_bytes(rows[i][row], 0, bytes.low);
        codes[i][row + 2] = permute_bytes(rows[i][row], 0, bytes.high);
      }
    }
    store_codes(codes, bits, device + tensor.codes, tensor.matrix, first, lane);
  }
}

/// Where a lane puts, or finds, word `pair` of the four that it owns of a 16-bit tile: two outer
/// neighbours each, in the order of the registers.
KVTILT_HD inline Word* fragment_pair(std::byte* buffer, Role role, int pair, int lane) {
  const int inner = role == Role::Keys ? pair : pair % 2 * 2 + pair / 2;
  return reinterpret_cast<Word*>(buffer + lane % 4 * reorder_pitch + inner * 32 + lane / 4 * 4);
}
/// Where a lane finds, or puts, its 16 bytes of the tile in host order.
KVTILT_HD inline Words* host_words(std::byte* buffer, int lane) {
  return reinterpret_cast<Words*>(buffer + lane / 8 * reorder_pitch +
                                  lane % 8 * static_cast<int>(sizeof(Words)));
}

/// Mask of the bits of a pair that belong to tokens before `tokens`.
KVTILT_HD inline std::uint32_t held_bits(Role role, int outer_tile, int inner_tile, int pair,
                                         int lane, int tokens) {
  if (role == Role::Keys) {
    const int token = outer_tile * tile_extent + lane / 4 * 2;
    return token + 1 < tokens ? 0xffffffffu : token < tokens ? 0xffffu : 0;
  }
  const int token = inner_tile * tile_extent + lane % 4 * 4 + pair % 2 * 2 + pair / 2;
  return token < tokens ? 0xffffffffu : 0;
}

/// Calls reorder(tile, outer_tile, inner_tile, buffer) for each 16-bit tile, of fragment_tile_bytes
/// in either order; a warp takes one at a time. `tile` is its number in host order.
template <class Threads, class Reorder>
KVTILT_HD void for_each_half_tile(const Threads& threads, CodeMatrix matrix, std::byte* shared,
                                  const Reorder& reorder) {
  const int inner_tiles = tiles_along(matrix.inner);
  const int tiles = tile_count(matrix);
  std::byte* const buffer = shared + threads.warp() * reorder_bytes;
  KVTILT_DEVICE_LOOP
  for (int tile = threads.warp(); tile < tiles; tile += threads.thread_count() / warp_lanes) {
    const int outer_tile = tile / inner_tiles;
    reorder(tile, outer_tile, tile - outer_tile * inner_tiles, buffer);
    threads.sync_warp();
  }
}

/// Offset in the host block of a lane's 16 bytes of a tile.
KVTILT_HD inline std::size_t half_words_at(const TensorLayout& tensor, int tile, int lane) {
  return byte_offset(tensor.codes,
                     tile * fragment_tile_bytes + lane * static_cast<int>(sizeof(Words)));
}

template <class Threads>
KVTILT_HD void halves_to_host(const Threads& threads, Role role, const TensorLayout& tensor,
                              const std::byte* device, HostBlock<std::byte>& host, int tokens,
                              std::byte* shared) {
  const int lane = threads.lane();
  const HalfTiles half{role, device + tensor.codes, tiles_along(tensor.matrix.outer),
                       tiles_along(tensor.matrix.inner)};
  const auto reorder = [&](int tile, int outer_tile, int inner_tile, std::byte* buffer) {
    const Fragment own = half.load(half.index(outer_tile, inner_tile), lane);
    KVTILT_DEVICE_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      const std::uint32_t even = own.r[pair / 2 * 2];
      const std::uint32_t odd = own.r[pair / 2 * 2 + 1];
      *fragment_pair(buffer, role, pair, lane) =
          (pair % 2 == 0 ? join_low(even, odd) : join_high(even, odd)) &
          held_bits(role, outer_tile, inner_tile, pair, lane, tokens);
    }
    threads.sync_warp();
    host.store(half_words_at(tensor, tile, lane), *host_words(buffer, lane));
  };
  for_each_half_tile(threads, tensor.matrix, shared, reorder);
}

template <class Threads>
KVTILT_HD void halves_to_device(const Threads& threads, Role role, const TensorLayout& tensor,
                                HostBlock<const std::byte>& host, std::byte* device,
                                std::byte* shared) {
  const int lane = threads.lane();
  const auto reorder = [&](int tile, int outer_tile, int inner_tile, std::byte* buffer) {
    *host_words(buffer, lane) = host.load(half_words_at(tensor, tile, lane));
    threads.sync_warp();
    Fragment own;
    KVTILT_DEVICE_UNROLL
    for (int reg = 0; reg < 4; reg += 2) {
      const std::uint32_t first = *fragment_pair(buffer, role, reg, lane);
      const std::uint32_t second = *fragment_pair(buffer, role, reg + 1, lane);
      own.r[reg] = join_low(first, second);
      own.r[reg + 1] = join_high(first, second);
    }
    const int to = tile_index(role, tensor.matrix, half_bits, outer_tile, inner_tile);
    reinterpret_cast<Fragment*>(device + tensor.codes + to * fragment_tile_bytes)[lane] = own;
  };
  for_each_half_tile(threads, tensor.matrix, shared, reorder);
}

}  // namespace detail

/// Converts codes and metadata from device order to host order.
///
/// device  block of the head, 64-byte aligned
/// tokens  in 16 bits, slots from `tokens` on become zeros; quantized tensors are copied whole
/// shared  convert_shared_bytes() of the tensor's elements, 16-byte aligned; free when it returns
template <class Threads>
KVTILT_HD void tensor_to_host(const Threads& threads, Role role, const TensorLayout& tensor,
                              const std::byte* device, HostBlock<std::byte>& host, int tokens,
                              std::byte* shared) {
  if (tensor.format.quantized())
    detail::codes_to_host(threads, role, tensor, device, host, shared);
  else
    detail::halves_to_host(threads, role, tensor, device, host, tokens, shared);
  detail::copy_words(
      threads, static_cast<int>(tensor.metadata_bytes()),
      [&](int at) { return load_words(device + tensor.metadata + at); },
      [&](int at, const Words& words) {
        host.store(detail::byte_offset(tensor.metadata, at), words);
      });
  threads.sync();
}

/// The exact reverse, for all slots.
template <class Threads>
KVTILT_HD void tensor_to_device(const Threads& threads, Role role, const TensorLayout& tensor,
                                HostBlock<const std::byte>& host, std::byte* device,
                                std::byte* shared) {
  detail::copy_words(
      threads, static_cast<int>(tensor.metadata_bytes()),
      [&](int at) { return host.load(detail::byte_offset(tensor.metadata, at)); },
      [&](int at, const Words& words) {
        *reinterpret_cast<Words*>(device + tensor.metadata + at) = words;
      });
  if (tensor.format.quantized())
    detail::codes_to_device(threads, role, tensor, host, device, shared);
  else
    detail::halves_to_device(threads, role, tensor, host, device, shared);
  threads.sync();
}

}  // namespace kvtilt::cuda
