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
  int first_channel;      ///< 0 for keys, key_dim for values
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
    record->channel = place.first_channel;
    record->value = value;
  }
  threads.atomic_add(&record->count, 1);
}

/// Two neighbours of a row.
template <class T>
struct InputPair {
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

KVTILT_HD inline bool exceeds(const InputPair<float>& pair, std::uint32_t limit) {
  return (bit_cast<std::uint32_t>(pair.low) & 0x7fffffffu) > limit ||
         (bit_cast<std::uint32_t>(pair.high) & 0x7fffffffu) > limit;
}
/// A magnitude above the limit carries into the sign.
template <class T>
KVTILT_HD bool exceeds(const InputPair<T>& pair, std::uint32_t limit) {
  const std::uint32_t magnitudes = bit_cast<std::uint32_t>(pair) & 0x7fff7fffu;
  return ((magnitudes + (0x7fffu - limit) * 0x10001u) & 0x80008000u) != 0;
}

KVTILT_HD inline std::uint32_t to_halves(const InputPair<float>& pair) {
  return pack_halves(pair.low, pair.high);
}
KVTILT_HD inline std::uint32_t to_halves(const InputPair<BF16>& pair) {
  return pack_halves(to_float(pair.low), to_float(pair.high));
}
KVTILT_HD inline std::uint32_t to_halves(const InputPair<F16>& pair) {
  return bit_cast<std::uint32_t>(pair);
}

KVTILT_HD inline float to_float(float x) { return x; }
KVTILT_HD constexpr float to_float(F16 x) { return kvtilt::to_float(x); }
KVTILT_HD constexpr float to_float(BF16 x) { return kvtilt::to_float(x); }

/// What is stored for an element that exceeds the limit.
KVTILT_HD inline float storable(float x, float limit) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0.0f;
  return bit_cast<float>(bit_cast<std::uint32_t>(limit) | (bits & 0x80000000u));
}

}  // namespace detail

/// One head of an engine's rows. Reads two neighbouring channels at a time.
template <class T, class Threads>
class InputReader {
 public:
  KVTILT_HD InputReader(const Threads& threads, const LayerStorage& layer, const TensorView& rows,
                        std::int64_t first_row, float limit, const InputPlace& place)
      : threads_(threads),
        layer_(layer),
        place_(place),
        data_(static_cast<const T*>(rows.data) + first_row * rows.token_stride +
              place.head * rows.head_stride),
        stride_(rows.token_stride),
        limit_(limit),
        limit_bits_(detail::limit_bits<T>(limit)),
        aligned_(reinterpret_cast<std::uintptr_t>(data_) % (4 * sizeof(T)) == 0 &&
                 stride_ % 4 == 0) {}

  /// Channels `channel` and channel + 1 of the token `token` behind the first, as fp16.
  KVTILT_HD std::uint32_t two(int token, int channel) const {
    const T* from = data_ + token * stride_ + channel;
    detail::InputPair<T> pair;
    if (aligned_) {
      struct alignas(2 * sizeof(T)) Raw {
        detail::InputPair<T> pair;
      };
      pair = reinterpret_cast<const Raw*>(from)->pair;
    } else {
      pair = {from[0], from[1]};
    }
    return convert(pair, token, channel);
  }

  /// Channels `channel` to channel + 3, a multiple of 4.
  KVTILT_HD void four(int token, int channel, std::uint32_t& first, std::uint32_t& second) const {
    const T* from = data_ + token * stride_ + channel;
    struct alignas(4 * sizeof(T)) Raw {
      detail::InputPair<T> pair[2];
    };
    Raw raw;
    if (aligned_)
      raw = *reinterpret_cast<const Raw*>(from);
    else
      raw = {{{from[0], from[1]}, {from[2], from[3]}}};
    first = convert(raw.pair[0], token, channel);
    second = convert(raw.pair[1], token, channel + 2);
  }

 private:
  KVTILT_HD std::uint32_t convert(const detail::InputPair<T>& pair, int token, int channel) const {
    if (!detail::exceeds(pair, limit_bits_)) return detail::to_halves(pair);
    return detail::join_halves(repair(pair.low, token, channel),
                               repair(pair.high, token, channel + 1));
  }
  KVTILT_HD F16 repair(T element, int token, int channel) const {
    if (!detail::exceeds(detail::InputPair<T>{element, T{}}, limit_bits_))
      return to_f16(detail::to_float(element));
    InputPlace place = place_;
    place.position += token;
    place.first_channel += channel;
    const float value = detail::to_float(element);
    detail::record_error(threads_, layer_, ErrorCode::InvalidValue, place, value);
    return to_f16(detail::storable(value, limit_));
  }

  const Threads& threads_;
  const LayerStorage& layer_;
  InputPlace place_;
  const T* data_;
  std::int64_t stride_;
  float limit_;
  std::uint32_t limit_bits_;
  bool aligned_;
};

namespace detail {

/// Tokens `slot` to slot + count - 1 of keys; the reader's first token goes to `slot`.
template <class Reader, class Threads>
KVTILT_HD void write_keys(const Threads& threads, const Reader& reader, CodeMatrix matrix, int slot,
                          int count, std::byte* codes) {
  const int quads = matrix.inner / 4;
  const int first_pair = slot / 2;
  const int pairs = (slot + count + 1) / 2 - first_pair;
  for (int item = threads.thread(); item < pairs * quads; item += threads.thread_count()) {
    const int pair = item / quads;
    const int channel = (item - pair * quads) * 4;
    const int outer = (first_pair + pair) * 2;
    const int token = outer - slot;
    std::uint32_t* to =
        reinterpret_cast<std::uint32_t*>(codes + half_offset(Role::Keys, matrix, outer, channel));
    Fragment words{};
    if (token >= 0) reader.four(token, channel, words.r[0], words.r[2]);
    if (token + 1 < count) reader.four(token + 1, channel, words.r[1], words.r[3]);
    if (token >= 0 && token + 1 < count) {
      *reinterpret_cast<Fragment*>(to) = words;
    } else {
      const int row = token >= 0 ? 0 : 1;
      to[row] = row == 0 ? words.r[0] : words.r[1];
      to[row + 2] = row == 0 ? words.r[2] : words.r[3];
    }
  }
}

template <class Reader, class Threads>
KVTILT_HD void write_values(const Threads& threads, const Reader& reader, CodeMatrix matrix,
                            int slot, int count, std::byte* codes) {
  const int pairs = matrix.outer / 2;
  const int first_quad = slot / 4;
  const int quads = (slot + count + 3) / 4 - first_quad;
  for (int item = threads.thread(); item < quads * pairs; item += threads.thread_count()) {
    const int quad_index = item / pairs;
    const int channel = (item - quad_index * pairs) * 2;
    const int inner = (first_quad + quad_index) * 4;
    const int token = inner - slot;
    std::byte* to = codes + half_offset(Role::Values, matrix, channel, inner);
    if (token >= 0 && token + 4 <= count) {
      std::uint32_t rows[4];
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4; ++i) rows[i] = reader.two(token + i, channel);
      *reinterpret_cast<Fragment*>(to) = {{join_low(rows[0], rows[2]), join_high(rows[0], rows[2]),
                                           join_low(rows[1], rows[3]),
                                           join_high(rows[1], rows[3])}};
      continue;
    }
    for (int i = 0; i < 4; ++i) {
      if (token + i < 0 || token + i >= count) continue;
      const std::uint32_t row = reader.two(token + i, channel);
      F16* halves = reinterpret_cast<F16*>(to) + i % 2 * 4 + i / 2;
      halves[0] = half_of(row, 0);
      halves[2] = half_of(row, 1);
    }
  }
}

/// All slots of a 16-bit tensor, a warp taking a tile at a time: stores are free of bank conflicts,
/// and of global memory whole sectors are read.
template <Role R, class Reader, class Threads>
KVTILT_HD void stage_tiles(const Threads& threads, const Reader& reader, CodeMatrix matrix,
                           std::byte* codes) {
  const int lane = threads.lane();
  const int outer_tiles = tiles_along(matrix.outer);
  const int inner_tiles = tiles_along(matrix.inner);
  const int fast_tiles = R == Role::Keys ? inner_tiles : outer_tiles;  // along channels
  const int tiles = outer_tiles * inner_tiles;
  const int warps = threads.thread_count() / warp_lanes;
  int slow = 0;
  int fast = threads.warp();
#if defined(__CUDACC__)
#pragma unroll 2
#endif
  for (int tile = threads.warp(); tile < tiles; tile += warps, fast += warps) {
    for (; fast >= fast_tiles; fast -= fast_tiles) ++slow;
    Fragment words;
    if constexpr (R == Role::Keys) {
      const int token = slow * tile_extent + lane / 4 * 2;
      const int channel = fast * tile_extent + lane % 4 * 4;
      reader.four(token, channel, words.r[0], words.r[2]);
      reader.four(token + 1, channel, words.r[1], words.r[3]);
    } else {
      const int channel = fast * tile_extent + lane / 4 * 2;
      const int token = slow * tile_extent + lane % 4 * 4;
      std::uint32_t rows[4];
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < 4; ++i) rows[i] = reader.two(token + i, channel);
      words = {{join_low(rows[0], rows[2]), join_high(rows[0], rows[2]), join_low(rows[1], rows[3]),
                join_high(rows[1], rows[3])}};
    }
    reinterpret_cast<Fragment*>(codes)[tile * warp_lanes + lane] = words;
  }
}

}  // namespace detail

/// Writes `count` tokens to the slots from `slot` on of the head's keys at `to`, a 16-bit tensor
/// of these extents. `place.position` is that of the first token.
template <class Threads>
KVTILT_HD void write_input(const Threads& threads, const LayerStorage& layer, Role role,
                           const TensorView& rows, std::int64_t first_row, float limit,
                           InputPlace place, CodeMatrix matrix, int slot, int count,
                           std::byte* to) {
  const auto write = [&](const auto& reader) {
    if (role == Role::Keys)
      detail::write_keys(threads, reader, matrix, slot, count, to);
    else
      detail::write_values(threads, reader, matrix, slot, count, to);
  };
  place.first_channel = role == Role::Keys ? 0 : layer.key_dim;
  if (rows.type == ElementType::F16)
    write(InputReader<F16, Threads>(threads, layer, rows, first_row, limit, place));
  else if (rows.type == ElementType::BF16)
    write(InputReader<BF16, Threads>(threads, layer, rows, first_row, limit, place));
  else
    write(InputReader<float, Threads>(threads, layer, rows, first_row, limit, place));
}

/// The same for all slots: the fast way.
template <class Threads>
KVTILT_HD void stage_input(const Threads& threads, const LayerStorage& layer, Role role,
                           const TensorView& rows, std::int64_t first_row, float limit,
                           InputPlace place, CodeMatrix matrix, std::byte* to) {
  const auto stage = [&](const auto& reader) {
    if (role == Role::Keys)
      detail::stage_tiles<Role::Keys>(threads, reader, matrix, to);
    else
      detail::stage_tiles<Role::Values>(threads, reader, matrix, to);
  };
  place.first_channel = role == Role::Keys ? 0 : layer.key_dim;
  if (rows.type == ElementType::F16)
    stage(InputReader<F16, Threads>(threads, layer, rows, first_row, limit, place));
  else if (rows.type == ElementType::BF16)
    stage(InputReader<BF16, Threads>(threads, layer, rows, first_row, limit, place));
  else
    stage(InputReader<float, Threads>(threads, layer, rows, first_row, limit, place));
}

}  // namespace kvtilt::cuda
