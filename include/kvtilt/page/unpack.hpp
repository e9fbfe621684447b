// SPDX-License-Identifier: MIT
/// Scalar reference: one element of a page as a float. Kernels that unpack pages must match it.
#pragma once

#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/affine.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// Decodes element (outer, inner) of a tensor. `block` is the block of its head in a page.
inline float unpack_value(const TensorLayout& tensor, const std::byte* block, int outer,
                          int inner) {
  const std::byte* codes = block + tensor.codes;
  if (!tensor.format.quantized())
    return to_float(
        reinterpret_cast<const F16*>(codes)[half_position(tensor.matrix, outer, inner)]);
  const int along = tensor.group_along_outer ? outer : inner;
  const int entry = tensor.group_along_outer ? inner : outer;
  const F16* scales = tensor.scales(block, along / tensor.format.group);
  const int code = read_code(reinterpret_cast<const std::uint8_t*>(codes), tensor.matrix,
                             tensor.format.bits, outer, inner);
  return decode(code, {scales[entry], scales[tensor.pitch() + entry]});
}

}  // namespace kvtilt
