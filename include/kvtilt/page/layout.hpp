// SPDX-License-Identifier: MIT
/// The page format. A page is `tokens` tokens of one layer: all kv heads, keys and values, with
/// all their metadata. Its size is a pure function of shape, recipes and tokens.
///
///     page        | head 0 | head 1 | ... |                      each 64-byte aligned
///     head block  | K codes | K metadata | V codes | V metadata | padding to 64 bytes |
///                 without V if values are in the keys (LayerShape::values_in_keys)
///     codes       order: bit_pack.hpp; keys [token][channel], values [channel][token]
///     metadata    [band][scales | minima][pitch entries] of fp16; absent at 16 bits
///                   per channel  band = `group` tokens, one entry per channel
///                   per token    band = `group` channels, one entry per token
///
/// Everything is little endian. Codes start at multiples of 32 bytes, of 64 unless a head
/// dimension is an odd multiple of 8. Slots that hold no token may contain anything: readers keep
/// them out of every result.
///
/// Pages in 16 bits (a sequence's newest tokens, the tail, and its first, the sinks) have the same
/// layout with 16-bit formats.
#pragma once

#include <kvtilt/core/role.hpp>
#include <kvtilt/page/bit_pack.hpp>
#include <kvtilt/quant/affine.hpp>
#include <kvtilt/quant/format.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

static_assert(std::endian::native == std::endian::little, "pages are little endian");

namespace kvtilt {

inline constexpr int page_alignment = 64;

constexpr bool is_page_size(int tokens) { return tokens == 32 || tokens == 64 || tokens == 128; }

inline Status check_page_tokens(int page_tokens) {
  if (is_page_size(page_tokens)) return {};
  return Status::error(ErrorCode::InvalidArgument, "page_tokens is %d, must be 32, 64 or 128",
                       page_tokens);
}

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Keys or values of one head inside a page. Offsets are in bytes, from the head's block.
struct TensorLayout {
  Format format;           ///< resolved: the group is written out
  CodeMatrix matrix;       ///< keys [token][channel], values [channel][token]
  bool group_along_outer;  ///< keys per channel, values per token
  std::uint32_t codes;
  std::uint32_t metadata;

  /// Whether each inner index has scales of its own, as groups extend along outer; else each outer
  /// index has.
  [[nodiscard]] KVTILT_HD constexpr bool scales_along_inner() const { return group_along_outer; }
  /// Number of bands: groups along the grouped axis, of which the last may be short.
  [[nodiscard]] KVTILT_HD constexpr int bands() const {
    if (!format.quantized()) return 0;
    const int extent = group_along_outer ? matrix.outer : matrix.inner;
    return (extent + format.group - 1) / format.group;
  }
  /// Entries of a band, one for each group.
  [[nodiscard]] KVTILT_HD constexpr int pitch() const {
    return scales_along_inner() ? matrix.inner : matrix.outer;
  }
  [[nodiscard]] KVTILT_HD constexpr std::size_t metadata_bytes() const {
    return static_cast<std::size_t>(bands()) * static_cast<std::size_t>(pitch()) * 2 * sizeof(F16);
  }
  /// The scales of a band; its minima start pitch() entries later.
  template <class Byte>
  [[nodiscard]] KVTILT_HD auto scales(Byte* block, int band) const {
    using Entry = std::conditional_t<std::is_const_v<Byte>, const F16, F16>;
    return reinterpret_cast<Entry*>(block + metadata) +
           static_cast<std::ptrdiff_t>(band) * 2 * pitch();
  }
  [[nodiscard]] KVTILT_HD constexpr std::size_t end() const { return metadata + metadata_bytes(); }
};

/// One kv head inside a page.
struct HeadLayout {
  std::uint64_t offset;  ///< of the block, from the start of the page
  TensorLayout key;
  TensorLayout value;  ///< without channels if values are in the keys

  [[nodiscard]] constexpr bool values_in_keys() const { return value.matrix.outer == 0; }
  [[nodiscard]] constexpr std::size_t bytes() const {
    return round_up(value.end(), page_alignment);
  }
};
static_assert(std::is_trivially_copyable_v<HeadLayout>);

/// The recipe of a layer's pages in 16 bits.
constexpr Recipe half_recipe(const LayerShape& shape) {
  return {Format{}, shape.values_in_keys ? in_keys : Format{}};
}

/// Layout of values whose codes start at `codes`.
constexpr TensorLayout value_layout(const Format& format, int value_dim, int tokens,
                                    std::size_t codes) {
  const CodeMatrix matrix{.outer = value_dim, .inner = tokens};
  return {.format = format,
          .matrix = matrix,
          .group_along_outer = format.granularity == Granularity::PerToken,
          .codes = static_cast<std::uint32_t>(codes),
          .metadata = static_cast<std::uint32_t>(codes + code_bytes(matrix, format.bits))};
}

/// Layout of one head's block. The recipe must be resolved (resolve_recipe).
constexpr HeadLayout head_layout(const Recipe& recipe, int key_dim, int value_dim, int tokens,
                                 std::uint64_t offset) {
  HeadLayout head{};
  head.offset = offset;
  head.key = {.format = recipe.key,
              .matrix = {.outer = tokens, .inner = key_dim},
              .group_along_outer = recipe.key.granularity == Granularity::PerChannel,
              .codes = 0,
              .metadata = 0};
  head.key.metadata = static_cast<std::uint32_t>(code_bytes(head.key.matrix, recipe.key.bits));
  const std::size_t values = round_up(head.key.end(), page_alignment / 2);
  head.value = recipe.value == in_keys ? value_layout(Format{}, 0, tokens, values)
                                       : value_layout(recipe.value, value_dim, tokens, values);
  return head;
}

/// All heads of a layer's page.
struct PageLayout {
  int tokens = 0;
  std::size_t bytes = 0;  ///< of one page, a multiple of 64
  std::vector<HeadLayout> heads;

  /// `recipes` has one entry for all heads, or one per head; all resolved.
  [[nodiscard]] static PageLayout make(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                       int tokens) {
    PageLayout layout;
    layout.tokens = tokens;
    for (int head = 0; head < shape.kv_heads; ++head) {
      const Recipe& recipe = recipes[recipes.size() == 1 ? 0 : static_cast<std::size_t>(head)];
      layout.heads.push_back(
          head_layout(recipe, shape.key_dim, shape.value_dim, tokens, layout.bytes));
      layout.bytes += layout.heads.back().bytes();
    }
    return layout;
  }

  /// Layout of a page of the same layer with keys and values in 16 bits.
  [[nodiscard]] static PageLayout make_half(const LayerShape& shape, int tokens) {
    return make(shape, {half_recipe(shape)}, tokens);
  }

  /// Bits per element of a full page, metadata and padding included.
  [[nodiscard]] double page_bits(const LayerShape& shape) const {
    const double elements = static_cast<double>(shape.elements_per_token()) * tokens;
    return elements == 0 ? 0.0 : 8.0 * static_cast<double>(bytes) / elements;
  }
};

}  // namespace kvtilt
