// SPDX-License-Identifier: MIT
/// Rows of an engine's tensors as 16-bit tensors in fragment order: the only way numbers enter a
/// device cache. What a recipe cannot hold is changed, since nothing can be refused any more: NaN
/// becomes 0, larger magnitudes the largest; the record names the first.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/fit_groups.hpp>
#include <kvtilt/cuda/fragment_order.hpp>
#include <kvtilt/cuda/group_math.hpp>
#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/cuda/layer_storage.hpp>
#include <kvtilt/cuda/unroll.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Where an element comes from, for the record.
struct InputPlace {
  int sequence;  ///< slot
  int head;
  int channel;            ///< 0 for keys, key_dim for values
  std::int64_t position;  ///< of the first of the tokens
};

namespace detail {

/// Counts an error; the first is described.
template <class Threads>
KVTILT_HD void record_error(const Threads& threads, const LayerStorage& layer, ErrorCode code,
                            const InputPlace& place, float value) {
  DeviceRecord* record = layer.record;
  if (threads.atomic_compare_and_swap(&record->code, 0, static_cast<std::uint32_t>(code)) == 0) {
    record->layer = layer.layer;
    record->sequence = place.sequence;
    record->token = place.position;
    record->head = place.head;
    record->channel = place.channel;
    record->value = value;
  }
  threads.atomic_add(&record->count, 1);
}

}  // namespace detail

/// Rows of one head that go into the slots from `slot` on of a 16-bit tensor.
struct InputTask {
  Role role;
  TensorView rows;
  std::int64_t first_row;
  float limit;       ///< largest magnitude that the recipe holds
  InputPlace place;  ///< of the first row
  CodeMatrix matrix;
  std::byte* codes;
  int slot;
  int count;

  [[nodiscard]] KVTILT_HD int dim() const {
    return role == Role::Keys ? matrix.inner : matrix.outer;
  }
  /// Element offset of a row, from `rows.data`.
  [[nodiscard]] KVTILT_HD std::int64_t row(int token) const {
    return (first_row + token) * rows.token_stride + place.head * rows.head_stride;
  }
  [[nodiscard]] KVTILT_HD F16* half(int token, int channel) const {
    const bool keys = role == Role::Keys;
    const int at = slot + token;
    const FragmentPlace place_in_tile =
        fragment_place(role, keys ? at : channel, keys ? channel : at);
    return reinterpret_cast<F16*>(tile(at / tile_extent, channel / tile_extent) +
                                  place_in_tile.lane * 16 + place_in_tile.reg * 4) +
           place_in_tile.half;
  }
  /// 16-bit tiles of either tensor stand by tokens first.
  [[nodiscard]] KVTILT_HD std::byte* tile(int token_tile, int channel_tile) const {
    return codes + (token_tile * tiles_along(dim()) + channel_tile) * fragment_tile_bytes;
  }
};

namespace detail {

KVTILT_HD inline float read_element(const TensorView& rows, std::int64_t index) {
  if (rows.type == ElementType::F32) return static_cast<const float*>(rows.data)[index];
  if (rows.type == ElementType::F16) return widen(static_cast<const F16*>(rows.data)[index]);
  return to_float(static_cast<const BF16*>(rows.data)[index]);
}

/// What is stored for x. NaN becomes 0.
KVTILT_HD inline float storable(float x, float limit) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude <= bit_cast<std::uint32_t>(limit)) return x;
  return magnitude > 0x7f800000u
             ? 0.0f
             : bit_cast<float>(bit_cast<std::uint32_t>(limit) | (bits & 0x80000000u));
}

KVTILT_HD inline bool is_storable(float x, float limit) {
  return (bit_cast<std::uint32_t>(x) & 0x7fffffffu) <= bit_cast<std::uint32_t>(limit);
}

/// Stores an element that is not storable, and says so.
template <class Threads>
KVTILT_HD void repair_element(const Threads& threads, const LayerStorage& layer,
                              const InputTask& task, int token, int channel) {
  const float x = read_element(task.rows, task.row(token) + channel);
  if (is_storable(x, task.limit)) return;
  InputPlace place = task.place;
  place.position += token;
  place.channel += channel;
  record_error(threads, layer, ErrorCode::InvalidValue, place, x);
  *task.half(token, channel) = nearest_half(storable(x, task.limit));
}

/// All tokens but those from `first` to last - 1, element by element: for decoding, for rows that
/// start anywhere, and for what fills no tile.
template <class Threads>
KVTILT_HD void write_elements(const Threads& threads, const LayerStorage& layer,
                              const InputTask& task, int first, int last) {
  constexpr int together = 4;  // loads on their way
  const int dim = task.dim();
  const int thread = opaque(threads.thread());
  const int threads_all = opaque(threads.thread_count());
  const int elements = (task.count - (last - first)) * dim;
  KVTILT_DEVICE_LOOP
  for (int base = thread; base < elements; base += together * threads_all) {
    float x[together];
    int token[together];
    int channel[together];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < together; ++i) {
      const int element = base + i * threads_all;
      token[i] = element / dim;
      channel[i] = element - token[i] * dim;
      if (token[i] >= first) token[i] += last - first;
      if (element < elements) x[i] = read_element(task.rows, task.row(token[i]) + channel[i]);
    }
    bool bad = false;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < together; ++i) {
      if (base + i * threads_all >= elements) break;
      bad = bad || !is_storable(x[i], task.limit);
      *task.half(token[i], channel[i]) = nearest_half(x[i]);
    }
    if (!bad) continue;
    KVTILT_DEVICE_LOOP
    for (int i = 0; i < together; ++i) {
      const int element = base + i * threads_all;
      const int row = element / dim;
      if (element < elements)
        repair_element(threads, layer, task, row >= first ? row + last - first : row,
                       element - row * dim);
    }
  }
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

/// What a lane reads of a tile of 16-bit elements: 2 rows of 4 channels for keys, 4 rows of 2 for
/// values; in both cases 4 words.
template <Role R>
struct RawTile {
  std::uint32_t word[4];

  KVTILT_HD void load(const std::uint16_t* from, std::int64_t stride) {
    if constexpr (R == Role::Keys) {
      struct alignas(8) Four {
        std::uint32_t word[2];
      };
      const Four a = *reinterpret_cast<const Four*>(from);
      const Four b = *reinterpret_cast<const Four*>(from + stride);
      word[0] = a.word[0];
      word[1] = b.word[0];
      word[2] = a.word[1];
      word[3] = b.word[1];
    } else {
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4; ++i)
        word[i] = *reinterpret_cast<const std::uint32_t*>(from + i * stride);
    }
  }
  /// Not 0 if a magnitude is above the limit: it carries into the sign. `carry`: 0x7fff - limit.
  [[nodiscard]] KVTILT_HD std::uint32_t excess(std::uint32_t carry) const {
    std::uint32_t sums = 0;
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < 4; ++i) sums |= (word[i] & 0x7fff7fffu) + carry * 0x10001u;
    return sums & 0x80008000u;
  }
  [[nodiscard]] KVTILT_HD Fragment fragment() const {
    if constexpr (R == Role::Keys) return {{word[0], word[1], word[2], word[3]}};
    return {{join_low(word[0], word[2]), join_high(word[0], word[2]), join_low(word[1], word[3]),
             join_high(word[1], word[3])}};
  }
};

/// Tiles that a warp has on their way.
inline constexpr int tiles_in_flight = 4;

/// Full tiles of the tokens from `first` on; slot + first and the number of tokens are multiples of
/// 16, elements have 16 bits. A warp takes a tile at a time: stores are free of bank conflicts, and of global memory whole
/// sectors are read. Returns whether this thread met an element that is not storable.
template <Role R, class Threads>
KVTILT_HD bool write_tiles(const Threads& threads, const InputTask& task, int first, int tokens) {
  const int lane = opaque(threads.lane());
  const int channel_tiles = tiles_along(task.dim());
  const int tiles = tiles_along(tokens) * channel_tiles;
  const int warps = opaque(threads.thread_count() / warp_lanes);
  const bool bf16 = task.rows.type == ElementType::BF16;
  const std::uint32_t carry = 0x7fffu - limit_bits(task.rows.type, task.limit);
  const std::int64_t stride = task.rows.token_stride;
  // From the lane's first element in tile 0.
  const std::uint16_t* const rows = static_cast<const std::uint16_t*>(task.rows.data) +
                                    task.row(first) +
                                    (R == Role::Keys ? lane / 4 * 2 : lane % 4 * 4) * stride +
                                    (R == Role::Keys ? lane % 4 * 4 : lane / 4 * 2);
  Fragment* const to =
      reinterpret_cast<Fragment*>(task.tile((task.slot + first) / tile_extent, 0)) + lane;
  int token_tile = 0;
  int channel_tile = opaque(threads.warp());
  std::uint32_t bad = 0;
  KVTILT_DEVICE_LOOP
  for (int tile = channel_tile; tile < tiles; tile += warps * tiles_in_flight) {
    RawTile<R> raw[tiles_in_flight];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < tiles_in_flight; ++i) {
      for (; channel_tile >= channel_tiles; channel_tile -= channel_tiles) ++token_tile;
      if (tile + i * warps < tiles)
        raw[i].load(rows + token_tile * tile_extent * stride + channel_tile * tile_extent, stride);
      channel_tile += warps;
    }
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < tiles_in_flight; ++i)
      if (tile + i * warps < tiles) bad |= raw[i].excess(carry);
    if (bf16) {
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < tiles_in_flight; ++i) {
        KVTILT_DEVICE_UNROLL
        for (std::uint32_t& word : raw[i].word) word = halves_of_bf16(word);
      }
    }
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < tiles_in_flight; ++i)
      if (tile + i * warps < tiles) to[(tile + i * warps) * warp_lanes] = raw[i].fragment();
  }
  return bad != 0;
}

/// Looks at the elements again that write_tiles() gave this thread.
template <class Threads>
KVTILT_HD void repair_tiles(const Threads& threads, const LayerStorage& layer,
                            const InputTask& task, int first, int tokens) {
  const int lane = opaque(threads.lane());
  const bool keys = task.role == Role::Keys;
  const int across = keys ? 4 : 2;  // channels of a lane in a tile
  const int channel_tiles = tiles_along(task.dim());
  const int tiles = tiles_along(tokens) * channel_tiles;
  KVTILT_DEVICE_LOOP
  for (int i = opaque(threads.warp()) * 8; i < tiles * 8; ++i) {
    const int tile = i / 8;
    const int token_tile = tile / channel_tiles;
    repair_element(
        threads, layer, task,
        first + token_tile * tile_extent + (keys ? lane / 4 * 2 : lane % 4 * 4) + i % 8 / across,
        (tile - token_tile * channel_tiles) * tile_extent + (keys ? lane % 4 * 4 : lane / 4 * 2) +
            i % 8 % across);
    if (i % 8 == 7) i += (threads.thread_count() / warp_lanes - 1) * 8;
  }
}

}  // namespace detail

/// Writes the rows into the slots. All threads of a block take part. Fast are whole tiles of 16-bit
/// elements whose rows start at multiples of 8 bytes.
template <class Threads>
KVTILT_HD void write_input(const Threads& threads, const LayerStorage& layer,
                           const InputTask& task) {
  const std::int64_t address =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(task.rows.data)) + 2 * task.row(0);
  int first = (tile_extent - task.slot % tile_extent) % tile_extent;  // token in a full tile
  int last = task.count - (task.slot + task.count) % tile_extent;
  if (task.rows.type == ElementType::F32 || address % 8 != 0 || task.rows.token_stride % 4 != 0 ||
      last <= first)
    first = last = task.count;
  detail::write_elements(threads, layer, task, first, last);
  if (last <= first) return;
  const bool bad = task.role == Role::Keys
                       ? detail::write_tiles<Role::Keys>(threads, task, first, last - first)
                       : detail::write_tiles<Role::Values>(threads, task, first, last - first);
  if (bad) detail::repair_tiles(threads, layer, task, first, last - first);
}

}  // namespace kvtilt::cuda
