// SPDX-License-Identifier: MIT
/// Named recipes.
#pragma once

#include <kvtilt/quant/format.hpp>

#include <string_view>

namespace kvtilt::presets {

/// Keys per channel in groups of a page's tokens, values per token in groups of min(128, head_dim)
/// channels.
constexpr Recipe per_channel_keys(int key_bits, int value_bits) {
  return {key_bits == half_bits ? Format{} : key_format(key_bits),
          value_bits == half_bits ? Format{} : value_format(value_bits)};
}

inline constexpr Recipe k16v16 = per_channel_keys(16, 16);
inline constexpr Recipe k8v8 = per_channel_keys(8, 8);
inline constexpr Recipe k8v4 = per_channel_keys(8, 4);
inline constexpr Recipe k6v4 = per_channel_keys(6, 4);
inline constexpr Recipe k4v4 = per_channel_keys(4, 4);
inline constexpr Recipe k4v2 = per_channel_keys(4, 2);
inline constexpr Recipe k3v2 = per_channel_keys(3, 2);
inline constexpr Recipe k2v2 = per_channel_keys(2, 2);
/// k8v4 and k4v2 with the widths swapped: baselines for spending more bits on keys than on values.
inline constexpr Recipe k4v8 = per_channel_keys(4, 8);
inline constexpr Recipe k2v4 = per_channel_keys(2, 4);
/// Liu et al., "KIVI", arXiv 2402.02750: groups of 32 and 128 recent tokens in 16 bits (the
/// default of CacheOptions::recent_tokens); here with the range rules of this library.
inline constexpr Recipe kivi2 = {key_format(2, Granularity::PerChannel, 32),
                                 value_format(2, Granularity::PerToken, 32)};
inline constexpr Recipe kivi4 = {key_format(4, Granularity::PerChannel, 32),
                                 value_format(4, Granularity::PerToken, 32)};

struct Named {
  std::string_view name;
  Recipe recipe;
};

/// Presets whose names do not follow the grammar of recipe.hpp: parse_recipe() looks here first.
inline constexpr Named all[] = {{"kivi2", kivi2}, {"kivi4", kivi4}};

}  // namespace kvtilt::presets
