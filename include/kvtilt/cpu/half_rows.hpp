// SPDX-License-Identifier: MIT
/// Writes rows of an engine's tensors into 16-bit blocks: the only way numbers enter a cache.
#pragma once

#include <kvtilt/cpu/kernel_table.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace kvtilt::cpu {

/// Rounds one (token, head) row of `rows.dim` values to fp16.
inline void round_row(const Kernels& kernels, const TensorView& rows, std::int64_t token, int head,
                      F16* row) {
  const void* source = rows.type == ElementType::F32
                           ? static_cast<const void*>(rows.row<float>(token, head))
                           : static_cast<const void*>(rows.row<F16>(token, head));
  kernels.to_f16_row(source, rows.type, rows.dim, row);
}

/// Stores one token's key and value of kv head `kv_head` in a slot of a 16-bit head block. A key is
/// scattered, a lane of each channel's line; a value goes in runs of 16 channels.
inline void write_half_token(const Kernels& kernels, const TensorView& keys,
                             const TensorView& values, std::int64_t token, int kv_head,
                             const HeadLayout& head, std::byte* block, int slot) {
  F16 row[max_head_dim];
  round_row(kernels, keys, token, kv_head, row);
  F16* lane =
      reinterpret_cast<F16*>(block + head.key.codes) + half_position(head.key.matrix, slot, 0);
  const std::size_t line = half_position(head.key.matrix, slot, 1) -  //
                           half_position(head.key.matrix, slot, 0);
  for (int channel = 0; channel < keys.dim; ++channel)
    lane[static_cast<std::size_t>(channel) * line] = row[channel];
  round_row(kernels, values, token, kv_head, row);
  F16* stored = reinterpret_cast<F16*>(block + head.value.codes);
  for (int channel = 0; channel < values.dim; channel += line_lanes)
    std::copy_n(row + channel, std::min(line_lanes, values.dim - channel),
                stored + half_position(head.value.matrix, channel, slot));
}

}  // namespace kvtilt::cpu
