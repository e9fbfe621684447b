// SPDX-License-Identifier: MIT
/// Describes rows of an engine's tensors that are written into a 16-bit tensor in fragment order.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/fragments.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Where an element comes from, for the record of errors.
struct InputPlace {
  int sequence;  ///< slot
  int head;
  int channel;            ///< 0 for keys, key_dim for values
  std::int64_t position;  ///< of the first of the tokens
};

/// Rows of one head to be written to the slots from `slot` on of a 16-bit tensor.
struct InputTask {
  Role role;
  TensorView rows;
  std::int64_t first_row;
  float limit;       ///< largest magnitude that the recipe can store
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
  /// 16-bit tiles of keys and values are stored [token tile][channel tile].
  [[nodiscard]] KVTILT_HD std::byte* tile(int token_tile, int channel_tile) const {
    return codes + (token_tile * tiles_along(dim()) + channel_tile) * fragment_tile_bytes;
  }
};

}  // namespace kvtilt::cuda
