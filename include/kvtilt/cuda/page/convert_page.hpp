// SPDX-License-Identifier: MIT
/// Converts pages on the host between the code order of the CPU and of disk (page/bit_pack.hpp) and
/// that of the GPU (fragment_order.hpp): codes and metadata stay the same, bit for bit.
#pragma once

#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/format.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace kvtilt::cuda {

namespace detail {

enum class Direction { ToDevice, ToHost };

inline std::uint32_t load_unaligned_word(const std::byte* at) {
  std::uint32_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}
inline void add_to_word(std::byte* at, std::uint32_t bits) {
  bits |= load_unaligned_word(at);
  std::memcpy(at, &bits, sizeof bits);
}

/// Converts one plane. `to` starts as zeros.
///
/// It takes 2 outer x 4 inner neighbours at a time: on the CPU two words, whose fields are a byte
/// apart; on the GPU the bits of one lane in one tile, up to two words side by side, whose places
/// follow from that of the first of the eight elements.
template <Direction direction>
void convert_plane(Role role, CodeMatrix matrix, int width, const std::byte* from, std::byte* to) {
  const std::uint32_t mask = (1u << width) - 1;
  WordPosition places[2][quad_codes];  // relative to the first of the eight elements
  for (int row = 0; row < 2; ++row)
    for (int i = 0; i < quad_codes; ++i)
      places[row][i] = word_position(role, matrix, width, row, i);

  for (int outer = 0; outer < matrix.outer; outer += 2)
    for (int inner = 0; inner < matrix.inner; inner += quad_codes) {
      const WordPosition device = word_position(role, matrix, width, outer, inner);
      for (int row = 0; row < 2; ++row) {
        const FieldPosition host = field_position(matrix, width, outer + row, inner);
        std::uint32_t line =
            direction == Direction::ToDevice ? load_unaligned_word(from + host.byte) : 0;
        for (int i = 0; i < quad_codes; ++i) {
          const int host_shift = host.shift + 8 * i;
          const std::size_t byte = device.byte + places[row][i].byte;
          const int shift = device.shift + places[row][i].shift;
          if constexpr (direction == Direction::ToDevice)
            add_to_word(to + byte, (line >> host_shift & mask) << shift);
          else
            line |= (load_unaligned_word(from + byte) >> shift & mask) << host_shift;
        }
        if constexpr (direction == Direction::ToHost) add_to_word(to + host.byte, line);
      }
    }
}

template <Direction direction>
void convert_halves(Role role, CodeMatrix matrix, const std::byte* from, std::byte* to) {
  for (int outer = 0; outer < matrix.outer; ++outer)
    for (int inner = 0; inner < matrix.inner; ++inner) {
      const std::size_t host = half_position(matrix, outer, inner) * sizeof(F16);
      const std::size_t device = half_offset(role, matrix, outer, inner);
      if constexpr (direction == Direction::ToDevice)
        std::memcpy(to + device, from + host, sizeof(F16));
      else
        std::memcpy(to + host, from + device, sizeof(F16));
    }
}

/// Converts a tensor's codes. `from` and `to` are blocks of a head; the codes of `to` are
/// overwritten.
template <Direction direction>
void convert_codes(Role role, const TensorLayout& tensor, const std::byte* from, std::byte* to) {
  from += tensor.codes;
  to += tensor.codes;
  if (!tensor.format.quantized()) return convert_halves<direction>(role, tensor.matrix, from, to);
  std::memset(to, 0, code_bytes(tensor.matrix, tensor.format.bits));
  const Planes split = planes(tensor.format.bits);
  for (int plane = 0; plane < split.count; ++plane) {
    const int width = split.width[plane];
    convert_plane<direction>(role, tensor.matrix, width, from, to);
    from += plane_bytes(tensor.matrix, width);
    to += plane_bytes(tensor.matrix, width);
  }
}

template <Direction direction>
void convert_page(const PageLayout& layout, const std::byte* from, std::byte* to) {
  std::memcpy(to, from, layout.bytes);  // metadata and padding
  for (const HeadLayout& head : layout.heads) {
    convert_codes<direction>(Role::Keys, head.key, from + head.offset, to + head.offset);
    convert_codes<direction>(Role::Values, head.value, from + head.offset, to + head.offset);
  }
}

inline Status supports_device_tensor(const char* name, int dim, int bits, int page_tokens) {
  if (dim % tile_extent != 0)
    return Status::error(ErrorCode::Unsupported,
                         "%s_dim is %d: on the GPU head dimensions are multiples of %d", name, dim,
                         tile_extent);
  if (!supports_order({page_tokens, dim}, bits))
    return Status::error(ErrorCode::Unsupported,
                         "%s_dim %d at %d bits in pages of %d tokens: on the GPU 1-bit planes need "
                         "16 x 16 tiles in fours; pages of 64 tokens, an even number of bits or a "
                         "dimension that is a multiple of 32 have them",
                         name, dim, bits, page_tokens);
  return {};
}

}  // namespace detail

/// Checks that the GPU supports pages of a layer.
///
/// Fails  InvalidArgument  the CPU does not support them either
///        Unsupported      names the tensor and what would be supported
inline Status supports_device_page(const LayerShape& shape, const Recipe& recipe, int page_tokens) {
  KVTILT_RETURN_IF_ERROR(check_page_tokens(page_tokens));
  KVTILT_RETURN_IF_ERROR(check_shape(shape, unnumbered_layer));
  if (shape.kv_heads == 0) return {};
  Result<Recipe> resolved = resolve_recipe(recipe, shape, page_tokens);
  if (!resolved) return std::move(resolved).take_status();
  KVTILT_RETURN_IF_ERROR(
      detail::supports_device_tensor("key", shape.key_dim, recipe.key.bits, page_tokens));
  return detail::supports_device_tensor("value", shape.value_dim, recipe.value.bits, page_tokens);
}

/// Converts a page, or a 16-bit block, from CPU order to device order, slots without a token
/// included.
///
/// layout       supported: supports_device_page()
/// host_page    layout.bytes; any alignment
/// device_page  layout.bytes of host memory, no overlap with host_page: to be copied to the GPU
/// Cost         about 4 ns an element and plane, 10 ns an element in 16 bits
inline void to_device_page(const PageLayout& layout, const std::byte* host_page,
                           std::byte* device_page) {
  detail::convert_page<detail::Direction::ToDevice>(layout, host_page, device_page);
}

/// The exact reverse of to_device_page().
inline void to_host_page(const PageLayout& layout, const std::byte* device_page,
                         std::byte* host_page) {
  detail::convert_page<detail::Direction::ToHost>(layout, device_page, host_page);
}

}  // namespace kvtilt::cuda
