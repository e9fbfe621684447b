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
    return reinterpret_cast<F16*>(codes + half_offset(role, matrix, keys ? slot + token : channel,
                                                      keys ? channel : slot + token));
  }
};

namespace detail {

KVTILT_HD inline float read_element(const TensorView& rows, std::int64_t index) {
  if (rows.type == ElementType::F32) return static_cast<const float*>(rows.data)[index];
  if (rows.type == ElementType::F16) return widen(static_cast<const F16*>(rows.data)[index]);
  return to_float(static_cast<const BF16*>(rows.data)[index]);
}

/// Checks and stores one element.
template <class Threads>
KVTILT_HD void store_element(const Threads& threads, const LayerStorage& layer,
                             const InputTask& task, int token, int channel, float x) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > bit_cast<std::uint32_t>(task.limit)) {
    InputPlace place = task.place;
    place.position += token;
    place.channel += channel;
    record_error(threads, layer, ErrorCode::InvalidValue, place, x);
    x = magnitude > 0x7f800000u
            ? 0.0f
            : bit_cast<float>(bit_cast<std::uint32_t>(task.limit) | (bits & 0x80000000u));
  }
  *task.half(token, channel) = nearest_half(x);
}

/// Tokens `first` to last - 1, element by element: for decoding, for rows that start anywhere, and
/// for what fills no tile.
template <class Threads>
KVTILT_HD void write_elements(const Threads& threads, const LayerStorage& layer,
                              const InputTask& task, int first, int last) {
  constexpr int together = 4;  // loads on their way
  const int dim = task.dim();
  const int elements = (last - first) * dim;
  KVTILT_DEVICE_LOOP
  for (int base = threads.thread(); base < elements; base += together * threads.thread_count()) {
    float x[together];
    int token[together];
    int channel[together];
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < together; ++i) {
      const int element = base + i * threads.thread_count();
      token[i] = element / dim;
      channel[i] = element - token[i] * dim;
      token[i] += first;
      if (element < elements) x[i] = read_element(task.rows, task.row(token[i]) + channel[i]);
    }
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < together; ++i)
      if (base + i * threads.thread_count() < elements)
        store_element(threads, layer, task, token[i], channel[i], x[i]);
  }
}

/// Two neighbours of a row.
template <class T>
struct alignas(2 * sizeof(T)) InputPair {
  T low;
  T high;
};

/// Bits of the largest magnitude that T may have.
template <class T>
KVTILT_HD constexpr std::uint32_t limit_bits(float limit) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(limit);
  if constexpr (sizeof(T) == 4) return bits;
  // 65504 and 32752 are fp16; of bf16 the largest below them is meant.
  return __is_same(T, F16) ? (((bits >> 23) - 112) << 10) | (bits >> 13 & 1023u) : bits >> 16;
}

/// Not 0 if a magnitude is above the limit: it carries into the sign.
template <class T>
KVTILT_HD std::uint32_t excess(const InputPair<T>& pair, std::uint32_t limit) {
  if constexpr (sizeof(T) == 4) {
    const std::uint32_t carry = 0x7fffffffu - limit;
    return (((bit_cast<std::uint32_t>(pair.low) & 0x7fffffffu) + carry) |
            ((bit_cast<std::uint32_t>(pair.high) & 0x7fffffffu) + carry)) &
           0x80000000u;
  } else {
    const std::uint32_t magnitudes = bit_cast<std::uint32_t>(pair) & 0x7fff7fffu;
    return (magnitudes + (0x7fffu - limit) * 0x10001u) & 0x80008000u;
  }
}

template <class T>
KVTILT_HD std::uint32_t to_halves(const InputPair<T>& pair) {
  if constexpr (__is_same(T, F16)) return bit_cast<std::uint32_t>(pair);
  if constexpr (__is_same(T, float)) return pack_halves(pair.low, pair.high);
  if constexpr (__is_same(T, BF16)) return pack_halves(to_float(pair.low), to_float(pair.high));
}

/// Full tiles of the tokens from `first` on; slot + first and the number of tokens are multiples of
/// 16. A warp takes a tile at a time: stores are free of bank conflicts, and of global memory whole
/// sectors are read.
template <Role R, class T, class Threads>
KVTILT_HD void write_tiles(const Threads& threads, const LayerStorage& layer, const InputTask& task,
                           int first, int tokens) {
  const int lane = threads.lane();
  const int channel_tiles = tiles_along(task.dim());
  const int tiles = tiles_along(tokens) * channel_tiles;
  const int warps = threads.thread_count() / warp_lanes;
  const std::uint32_t limit = limit_bits<T>(task.limit);
  const T* const rows = static_cast<const T*>(task.rows.data) + task.row(first);
  const std::int64_t stride = task.rows.token_stride;
  // The lane's first element in a tile.
  const int own_token = R == Role::Keys ? lane / 4 * 2 : lane % 4 * 4;
  const int own_channel = R == Role::Keys ? lane % 4 * 4 : lane / 4 * 2;
  int token_tile = 0;
  int channel_tile = threads.warp();
#if defined(__CUDACC__)
#pragma unroll 2
#endif
  for (int tile = threads.warp(); tile < tiles; tile += warps, channel_tile += warps) {
    for (; channel_tile >= channel_tiles; channel_tile -= channel_tiles) ++token_tile;
    const int token = token_tile * tile_extent + own_token;
    const int channel = channel_tile * tile_extent + own_channel;
    const T* const from = rows + token * stride + channel;
    Fragment words;
    std::uint32_t bad = 0;
    if constexpr (R == Role::Keys) {
      struct alignas(4 * sizeof(T)) Four {
        InputPair<T> pair[2];
      };
      const Four a = *reinterpret_cast<const Four*>(from);
      const Four b = *reinterpret_cast<const Four*>(from + stride);
      bad = excess(a.pair[0], limit) | excess(a.pair[1], limit) | excess(b.pair[0], limit) |
            excess(b.pair[1], limit);
      words = {
          {to_halves(a.pair[0]), to_halves(b.pair[0]), to_halves(a.pair[1]), to_halves(b.pair[1])}};
    } else {
      std::uint32_t halves[4];
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const auto pair = *reinterpret_cast<const InputPair<T>*>(from + i * stride);
        bad |= excess(pair, limit);
        halves[i] = to_halves(pair);
      }
      words = {{join_low(halves[0], halves[2]), join_high(halves[0], halves[2]),
                join_low(halves[1], halves[3]), join_high(halves[1], halves[3])}};
    }
    *reinterpret_cast<Fragment*>(task.half(first + token, channel)) = words;
    if (bad == 0) continue;
    constexpr int across = R == Role::Keys ? 4 : 2;  // channels of a lane
    KVTILT_DEVICE_LOOP
    for (int i = 0; i < 8; ++i) {
      const int t = token + i / across;
      const int c = channel + i % across;
      store_element(threads, layer, task, first + t, c,
                    read_element(task.rows, task.row(first + t) + c));
    }
  }
}

template <class T, class Threads>
KVTILT_HD void write_tiles(const Threads& threads, const LayerStorage& layer, const InputTask& task,
                           int first, int tokens) {
  if (task.role == Role::Keys)
    write_tiles<Role::Keys, T>(threads, layer, task, first, tokens);
  else
    write_tiles<Role::Values, T>(threads, layer, task, first, tokens);
}

}  // namespace detail

/// Writes the rows into the slots. All threads of a block take part.
template <class Threads>
KVTILT_HD void write_input(const Threads& threads, const LayerStorage& layer,
                           const InputTask& task) {
  const auto address = reinterpret_cast<std::uintptr_t>(task.rows.data) / 2;
  const int unit = task.rows.type == ElementType::F32 ? 2 : 1;  // in 2 bytes
  const bool aligned =
      (static_cast<std::int64_t>(address) + task.row(0) * unit) % (4 * unit) == 0 &&
      task.rows.token_stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(task.rows.data) % 2 == 0;
  int tiled = (tile_extent - task.slot % tile_extent) % tile_extent;  // first token in a full tile
  int rest = task.count - (task.slot + task.count) % tile_extent;     // one past the last
  if (!aligned || rest <= tiled) tiled = rest = task.count;
  detail::write_elements(threads, layer, task, 0, tiled);
  if (rest > tiled) {
    if (task.rows.type == ElementType::F16)
      detail::write_tiles<F16>(threads, layer, task, tiled, rest - tiled);
    else if (task.rows.type == ElementType::BF16)
      detail::write_tiles<BF16>(threads, layer, task, tiled, rest - tiled);
    else
      detail::write_tiles<float>(threads, layer, task, tiled, rest - tiled);
  }
  detail::write_elements(threads, layer, task, rest, task.count);
}

}  // namespace kvtilt::cuda
