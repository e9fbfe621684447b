// SPDX-License-Identifier: MIT
/// Lists the formats, group sizes included, that a planner chooses from. The group size is part of
/// the format: smaller groups cost metadata and save error, as wider codes do. So there is no
/// separate planner for groups: format_choices lists the candidates, and plan_bits picks width,
/// granularity and group at once, with the metadata counted.
#pragma once

#include <kvtilt/page/layout.hpp>
#include <kvtilt/plan/losses.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace kvtilt {

/// Limits the formats that format_choices lists.
struct GroupOptions {
  int smallest = 32;  ///< group size; a smaller group has over 1 bit of metadata per element
  bool both_granularities = true;  ///< false: keys per channel and values per token only
};

namespace detail {

inline void append_formats(int bits, Granularity granularity, int dim, int page_tokens,
                           int smallest, std::vector<Format>& formats) {
  const auto add = [&](int group) {
    const Format format{bits, granularity, group, default_rule(bits)};
    if (std::find(formats.begin(), formats.end(), format) == formats.end())
      formats.push_back(format);
  };
  const bool per_channel = granularity == Granularity::PerChannel;
  const int whole = per_channel ? page_tokens : std::min(dim, max_group);
  for (int group = 16; group < whole; group *= 2)
    if (group >= smallest) add(group);
  add(whole);
}

}  // namespace detail

/// Lists all formats of the given widths that are worth weighing for a shape, in the order of the
/// widths: per channel with every power-of-two group that divides the page, per token with every
/// power-of-two group below head_dim and with the whole head. Groups have at least options.smallest
/// elements. The formats resolve for every layer: layers with a smaller head_dim get a smaller
/// group.
///
/// bits   1 to 8 or 16, for keys and for values
/// Fails  InvalidArgument for other widths, pages or shapes
inline Result<FormatChoices> format_choices(const CacheShape& shape, int page_tokens,
                                            std::span<const int> key_bits,
                                            std::span<const int> value_bits,
                                            const GroupOptions& options = {}) {
  KVTILT_RETURN_IF_ERROR(check_shape(shape));
  KVTILT_RETURN_IF_ERROR(check_page_tokens(page_tokens));
  int key_dim = 0;
  int value_dim = 0;
  for (const LayerShape& layer : shape.layers) {
    key_dim = std::max(key_dim, layer.key_dim);
    value_dim = std::max(value_dim, layer.value_dim);
  }
  FormatChoices choices;
  for (const Role tensor : {Role::Keys, Role::Values}) {
    const bool keys = tensor == Role::Keys;
    std::vector<Format>& formats = choices.of(tensor);
    const Granularity usual = keys ? Granularity::PerChannel : Granularity::PerToken;
    const Granularity other = keys ? Granularity::PerToken : Granularity::PerChannel;
    for (const int bits : keys ? key_bits : value_bits) {
      if (!is_storage_width(bits))
        return Status::error(ErrorCode::InvalidArgument, "%s: %d bits; must be 1 to 8, or 16",
                             to_string(tensor), bits);
      if (bits == half_bits) {
        formats.push_back(Format{});
        continue;
      }
      const int dim = keys ? key_dim : value_dim;
      detail::append_formats(bits, usual, dim, page_tokens, options.smallest, formats);
      if (options.both_granularities)
        detail::append_formats(bits, other, dim, page_tokens, options.smallest, formats);
    }
  }
  return choices;
}

}  // namespace kvtilt
