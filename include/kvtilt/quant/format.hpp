// SPDX-License-Identifier: MIT
/// How one tensor is stored (Format), a key format with a value format (Recipe), and the
/// compile-time lists of widths a build carries kernels for.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/status.hpp>

#include <concepts>
#include <cstdint>
#include <utility>

namespace kvtilt {

/// Which elements share a scale and a minimum.
enum class Granularity : std::uint8_t {
  PerChannel,  ///< a group runs along tokens, within one channel of one kv head
  PerToken,    ///< a group runs along channels, within one token of one kv head
};

/// Most elements of a group: sums of 128 fp16 values are exact in 64-bit integers and in double.
inline constexpr int max_group = 128;

/// How the scale and the minimum of a group are chosen.
enum class RangeRule : std::uint8_t {
  MinMax,     ///< covers the whole range: errors of at most half a scale
  MinMse,     ///< shrinks the range at both ends where that lowers the squared error, up to the
              ///< rounding of scale and minimum; 2 to 5 bits
  Centroids,  ///< 1 bit: the levels are the means of the elements below and above the mean
};

constexpr const char* to_string(RangeRule rule) {
  return rule == RangeRule::MinMax   ? "min-max"
         : rule == RangeRule::MinMse ? "min-mse"
                                     : "centroids";
}

/// The default rule of a width. From 6 bits on MinMse, in its steps of 1/64 of the range, would gain
/// less than 3 %.
constexpr RangeRule default_rule(int bits) {
  return bits == 1 ? RangeRule::Centroids : bits <= 5 ? RangeRule::MinMse : RangeRule::MinMax;
}

inline constexpr int half_bits = 16;  ///< fp16 passed through: no groups, no metadata

constexpr bool is_storage_width(int bits) { return (bits >= 1 && bits <= 8) || bits == half_bits; }

/// How one tensor (the keys or the values of one layer and kv head) is stored.
struct Format {
  int bits = half_bits;  ///< 1 to 8, or 16
  Granularity granularity = Granularity::PerToken;
  int group =
      0;  ///< elements sharing a scale; 0: the page (per channel), min(128, dim) (per token)
  RangeRule rule = RangeRule::MinMax;  ///< ignored for 16 bits

  friend constexpr bool operator==(const Format&, const Format&) = default;

  /// Whether it has codes; in_keys, of 0 bits, has none.
  [[nodiscard]] KVTILT_HD constexpr bool quantized() const { return bits % half_bits != 0; }
};

/// The "format" of values that are part of their keys (LayerShape::values_in_keys).
inline constexpr Format in_keys{.bits = 0};

/// A key format of the given width: by default per channel; the width's default rule.
constexpr Format key_format(int bits, Granularity granularity = Granularity::PerChannel,
                            int group = 0) {
  return {bits, granularity, group, default_rule(bits)};
}

/// A value format of the given width: by default per token; the width's default rule.
constexpr Format value_format(int bits, Granularity granularity = Granularity::PerToken,
                              int group = 0) {
  return {bits, granularity, group, default_rule(bits)};
}

/// How the keys and the values of a kv head are stored. `value` is in_keys where the layer's values
/// are.
struct Recipe {
  Format key;
  Format value;

  friend constexpr bool operator==(const Recipe&, const Recipe&) = default;
};

/// The largest magnitude that can be stored: that of fp16, or half of it for 1 bit, where the scale
/// is a difference of means and must itself fit fp16.
KVTILT_HD constexpr float largest_magnitude(const Format& format) {
  return format.bits == 1 ? 32752.0f : f16_max;
}

/// Returns the format with its default group filled in for a head of `dim` channels. `tensor`
/// ("keys" or "values") is only used in the message.
///
/// Fails  InvalidArgument  names the rule that is broken
inline Result<Format> resolve_format(Format format, const char* tensor, int dim, int page_tokens) {
  const auto fail = [&, group = format.group](const char* rule) {
    return Status::error(ErrorCode::InvalidArgument,
                         "%s: %d bits, group %d with head dimension %d "
                         "and pages of %d tokens: %s",
                         tensor, format.bits, group, dim, page_tokens, rule);
  };
  if (!is_storage_width(format.bits)) return fail("bits must be 1 to 8, or 16 (0: values in keys)");
  if (!format.quantized()) {
    if (format.group != 0) return fail("16-bit formats have no groups");
    return Format{half_bits, Granularity::PerToken, 0, RangeRule::MinMax};
  }
  if (format.granularity > Granularity::PerToken)
    return fail("groups run per channel or per token");
  if (format.rule > RangeRule::Centroids)
    return fail("the rule must be min-max, min-mse or centroids");
  if ((format.rule == RangeRule::Centroids) != (format.bits == 1))
    return fail("1 bit uses the centroid rule, and only 1 bit does");
  if (format.rule == RangeRule::MinMse && format.bits > 5)
    return fail("the min-mse rule is defined for 2 to 5 bits");
  if (format.group < 0) return fail("a group cannot be negative");
  if (format.granularity == Granularity::PerChannel) {
    if (format.group == 0) format.group = page_tokens;
    if (format.group % 16 != 0 || page_tokens % format.group != 0)
      return fail("a per-channel group must be a multiple of 16 that divides the page");
  } else {
    if (format.group == 0) format.group = dim < max_group ? dim : max_group;
    if (format.group > dim) format.group = dim;
    if (format.group > max_group) return fail("a per-token group holds at most 128 channels");
    if (format.group != dim && format.group % 16 != 0)
      return fail("a per-token group must be a multiple of 16, or the whole head");
  }
  return format;
}

/// Resolves the key and the value format of a recipe for one layer's shape.
inline Result<Recipe> resolve_recipe(const Recipe& recipe, const LayerShape& shape,
                                     int page_tokens) {
  Result<Format> key = resolve_format(recipe.key, "keys", shape.key_dim, page_tokens);
  if (!key) return std::move(key).take_status();
  if (shape.values_in_keys) {
    if (recipe.value == in_keys) return Recipe{*key, in_keys};
    return Status::error(
        ErrorCode::InvalidArgument,
        "values of %d bits: this layer's values are in its keys, which alone have a "
        "format (k%d)",
        recipe.value.bits, key->bits);
  }
  Result<Format> value = resolve_format(recipe.value, "values", shape.value_dim, page_tokens);
  if (!value) return std::move(value).take_status();
  return Recipe{*key, *value};
}

/// Compile-time lists of the widths that kernels are built for. Key and value kernels are combined
/// at run time only, so N key and M value widths cost N + M kernels and serve N x M recipes;
/// granularity, group and rule are run-time data.
template <int... Bits>
requires(is_storage_width(Bits) && ...) struct Keys {
  static constexpr bool contains(int bits) { return ((Bits == bits) || ...); }
};

template <int... Bits>
requires(is_storage_width(Bits) && ...) struct Values {
  static constexpr bool contains(int bits) { return ((Bits == bits) || ...); }
};

template <class T>
concept WidthList = requires {
  { T::contains(0) } -> std::same_as<bool>;
};

/// The widths that a build supports: template argument of KVCache.
template <WidthList KeyWidths, WidthList ValueWidths>
struct Formats {
  using keys = KeyWidths;
  using values = ValueWidths;
};

using AllFormats = Formats<Keys<1, 2, 3, 4, 5, 6, 7, 8, 16>, Values<1, 2, 3, 4, 5, 6, 7, 8, 16>>;

}  // namespace kvtilt
