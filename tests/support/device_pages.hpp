// SPDX-License-Identifier: MIT
/// Converts CPU pages to the GPU's layout (fragment order), element by element.
#pragma once

#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/page/layout.hpp>

#include "support/fragment_code.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace kvtilt::test {

inline void to_fragment_order(const TensorLayout& tensor, Role role, const std::byte* host,
                              std::byte* device) {
  const CodeMatrix matrix = tensor.matrix;
  const auto* from = reinterpret_cast<const std::uint8_t*>(host + tensor.codes);
  auto* to = reinterpret_cast<std::uint8_t*>(device + tensor.codes);
  for (int outer = 0; outer < matrix.outer; ++outer)
    for (int inner = 0; inner < matrix.inner; ++inner)
      if (tensor.format.quantized())
        write_fragment_code(role, to, matrix, tensor.format.bits, outer, inner,
                            read_code(from, matrix, tensor.format.bits, outer, inner));
      else
        std::memcpy(to + cuda::half_offset(role, matrix, outer, inner),
                    from + 2 * half_position(matrix, outer, inner), 2);
  std::memcpy(device + tensor.metadata, host + tensor.metadata, tensor.metadata_bytes());
}

/// Converts a head's block; `device` must be zeros.
inline void to_fragment_order(const HeadLayout& head, const std::byte* host, std::byte* device) {
  to_fragment_order(head.key, Role::Keys, host, device);
  to_fragment_order(head.value, Role::Values, host, device);
}

}  // namespace kvtilt::test
