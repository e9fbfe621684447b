// SPDX-License-Identifier: MIT
/// Which groups a planner should weigh. A group size is a part of the format: smaller groups cost
/// metadata and save error, exactly as wider codes do. So there is no second planner for groups:
/// format_choices writes out the candidates, and plan_bits picks width, granularity and group at
/// once, with the metadata counted.
#pragma once

#include <kvtilt/page/layout.hpp>
#include <kvtilt/plan/losses.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace kvtilt {

/// Which formats format_choices writes out.
struct GroupOptions {
  int smallest = 32;               ///< group; below it metadata takes more than a bit per element
  bool both_granularities = true;  ///< else keys per channel and values per token alone
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

/// All formats of the given widths worth weighing for a shape, widths in the order given: per
/// channel in every power of two that divides the page, per token in every power of two below the
/// head and in the whole head. They resolve for every layer; a per-token group is cut to shorter
/// heads.
///
/// bits   1 to 8 or 16, for keys and for values
/// Fails  InvalidArgument for other widths, pages or shapes
inline Result<FormatChoices> format_choices(const CacheShape& shape, int page_tokens,
                                            std::span<const int> key_bits,
                                            std::span<const int> value_bits,
                                            const GroupOptions& options = {}) {
  KVTILT_RETURN_IF_ERROR(check_shape(shape));
  if (!is_page_size(page_tokens))
    return Status::error(ErrorCode::InvalidArgument, "pages of %d tokens; must be 32, 64 or 128",
                         page_tokens);
  int key_dim = 0;
  int value_dim = 0;
  for (const LayerShape& layer : shape.layers) {
    key_dim = std::max(key_dim, layer.key_dim);
    value_dim = std::max(value_dim, layer.value_dim);
  }
  FormatChoices choices;
  for (const Tensor tensor : {Tensor::Keys, Tensor::Values}) {
    const bool keys = tensor == Tensor::Keys;
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
