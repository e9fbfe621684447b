// SPDX-License-Identifier: MIT
/// Writes rows of an engine's tensors into 16-bit blocks, the only way for tokens to enter a cache.
#pragma once

#include <kvtilt/cpu/kernel_table.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cpu {

/// Address of channel 0 of one head of one token, whatever the type.
inline const void* row_address(const TensorView& rows, std::int64_t token, int head) {
  return rows.type == ElementType::F32 ? static_cast<const void*>(rows.row<float>(token, head))
                                       : static_cast<const void*>(rows.row<F16>(token, head));
}

/// Stores one head's keys and values (ignored if they are in the keys) of `rows.count` tokens in a
/// 16-bit head block, from slot `slot` on.
inline void write_half_rows(const Kernels& kernels, const TensorView& keys,
                            const TensorView& values, const RowRange& rows, const HeadLayout& head,
                            std::byte* block, int slot) {
  kernels.write_keys(keys, rows, head.key.matrix, reinterpret_cast<F16*>(block + head.key.codes),
                     slot);
  kernels.write_values(values, rows, head.value.matrix,
                       reinterpret_cast<F16*>(block + head.value.codes), slot);
}

}  // namespace kvtilt::cpu
