// SPDX-License-Identifier: MIT
/// Pages back to floats, in scalar code: for tools, tests and exports. Attention never does this.
#pragma once

#include <kvtilt/page/layer_view.hpp>
#include <kvtilt/quant/affine.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt {

/// One element of a tensor inside its head's block: what attention sees in its place.
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

/// All live tokens of one kv head, in order of position.
///
/// keys    receives [tokens, key_dim], or null
/// values  receives [tokens, value_dim], or null
/// Returns the number of tokens.
inline std::int64_t unpack(const LayerView& view, int kv_head, float* keys, float* values) {
  std::int64_t tokens = 0;
  for (std::int32_t index = 0; index < view.page_count; ++index) {
    const PageEntry& page = view.pages[index];
    const HeadLayout& head = view.head(page.kind, kv_head);
    const std::byte* block = page.data + head.offset;
    for (int token = 0; token < page.tokens; ++token, ++tokens) {
      for (int channel = 0; keys != nullptr && channel < view.shape.key_dim; ++channel)
        keys[tokens * view.shape.key_dim + channel] = unpack_value(head.key, block, token, channel);
      for (int channel = 0; values != nullptr && channel < view.shape.value_dim; ++channel)
        values[tokens * view.shape.value_dim + channel] =
            unpack_value(head.value, block, channel, token);
    }
  }
  return tokens;
}

}  // namespace kvtilt
