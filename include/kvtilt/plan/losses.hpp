// SPDX-License-Identifier: MIT
/// What a planner chooses from (formats) and what each choice costs (losses). All sources of losses
/// - weight norms, captured statistics, measured divergence - produce this form.
#pragma once

#include <kvtilt/core/half.hpp>
#include <kvtilt/core/role.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/quant/format.hpp>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvtilt {

/// Whether a plan has one recipe for all kv heads of a layer, or one for each.
enum class RecipePer : std::uint8_t { Layer, Head };

/// Formats that a planner may give to keys and to values, the same for every layer. A group of 0
/// stands for the default group, which resolve_format sets layer by layer.
struct FormatChoices {
  std::vector<Format> keys;
  std::vector<Format> values;

  [[nodiscard]] std::vector<Format>& of(Role tensor) {
    return tensor == Role::Keys ? keys : values;
  }
};

/// Losses of storing one kv head (or all heads of a layer): keys[i] in format choices.keys[i],
/// values[j] in choices.values[j]. Losses add up over keys and values, heads, and layers. Their
/// unit is the caller's, the same for the whole model. Where values are in the keys, `values` is empty
/// and `keys` has the loss of both.
struct HeadLosses {
  std::vector<double> keys;
  std::vector<double> values;

  [[nodiscard]] std::vector<double>& of(Role tensor) {
    return tensor == Role::Keys ? keys : values;
  }
};

/// layers[layer] has one entry for all heads, or one per kv head; none for a layer without a cache.
struct ModelLosses {
  std::vector<std::vector<HeadLosses>> layers;
};

namespace detail {

/// Also works under -ffast-math, where the comparisons of the standard library do not.
constexpr bool is_finite(double x) { return (bit_cast<std::uint64_t>(x) >> 52 & 0x7ff) != 0x7ff; }

/// Upper limit of a loss, so that sums of losses stay finite.
inline constexpr double largest_loss = 1e300;

constexpr bool is_loss(double x) { return is_finite(x) && x >= 0.0 && x <= largest_loss; }

inline Status check_tensor_losses(const std::vector<double>& losses, std::size_t formats,
                                  std::size_t layer, std::size_t entry, Role tensor) {
  if (losses.size() != formats)
    return Status::error(ErrorCode::InvalidArgument,
                         "layer %zu, entry %zu: %zu losses of %s for %zu formats", layer, entry,
                         losses.size(), to_string(tensor), formats);
  for (std::size_t i = 0; i < formats; ++i)
    if (!is_loss(losses[i]))
      return Status::error(ErrorCode::InvalidValue,
                           "layer %zu, entry %zu: the loss of %s in format %zu is %g; losses are 0 "
                           "to %g",
                           layer, entry, to_string(tensor), i, losses[i], largest_loss);
  return {};
}

}  // namespace detail

/// Resolves the choices against one layer; values that are in the keys have in_keys alone. Fails with
/// the error of the first format that does not fit the layer, and with InvalidArgument if a list is
/// empty. `layer` is only used in messages.
inline Result<FormatChoices> resolve_choices(const FormatChoices& choices, const LayerShape& shape,
                                             int page_tokens, std::size_t layer) {
  if (choices.keys.empty() || (choices.values.empty() && !shape.values_in_keys))
    return Status::error(ErrorCode::InvalidArgument,
                         "nothing to choose from: %zu key formats, %zu value formats",
                         choices.keys.size(), choices.values.size());
  FormatChoices resolved = choices;
  for (const Role tensor : {Role::Keys, Role::Values}) {
    if (tensor == Role::Values && shape.values_in_keys) {
      resolved.values = {in_keys};
      continue;
    }
    for (Format& format : resolved.of(tensor)) {
      const int dim = tensor == Role::Keys ? shape.key_dim : shape.value_dim;
      Result<Format> one = resolve_format(format, to_string(tensor), dim, page_tokens);
      if (!one) return in_layer(layer, one.status());
      format = *one;
    }
  }
  return resolved;
}

/// Checks counts and values; the error names the first that is invalid. Entries of layers without a
/// cache are ignored.
inline Status check_losses(const ModelLosses& losses, const CacheShape& shape,
                           const FormatChoices& choices) {
  if (losses.layers.size() != shape.layers.size())
    return Status::error(ErrorCode::InvalidArgument, "losses of %zu layers for a shape of %zu",
                         losses.layers.size(), shape.layers.size());
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
    const std::vector<HeadLosses>& entries = losses.layers[layer];
    const int heads = shape.layers[layer].kv_heads;
    if (heads == 0) continue;
    if (entries.size() != 1 && entries.size() != static_cast<std::size_t>(heads))
      return Status::error(ErrorCode::InvalidArgument,
                           "layer %zu: losses of %zu heads for %d kv heads; give one entry, or one "
                           "per head",
                           layer, entries.size(), heads);
    for (std::size_t entry = 0; entry < entries.size(); ++entry) {
      KVTILT_RETURN_IF_ERROR(detail::check_tensor_losses(entries[entry].keys, choices.keys.size(),
                                                         layer, entry, Role::Keys));
      const std::size_t values = shape.layers[layer].values_in_keys ? 0 : choices.values.size();
      KVTILT_RETURN_IF_ERROR(
          detail::check_tensor_losses(entries[entry].values, values, layer, entry, Role::Values));
    }
  }
  return {};
}

namespace detail {

/// Makes the losses of all layers. fill(layer, tensor, formats, entries) sets the tensor's lists in
/// a layer's entries (one for all heads, or one per head) to its losses in `formats`, which are
/// resolved against the layer, but not those of values in the keys. An error of fill gets the layer and
/// the tensor in front.
template <class Fill>
Result<ModelLosses> make_losses(const CacheShape& shape, int page_tokens,
                                const FormatChoices& choices, RecipePer per, const Fill& fill) {
  KVTILT_RETURN_IF_ERROR(check_shape(shape));
  ModelLosses losses;
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
    const LayerShape& layer_shape = shape.layers[layer];
    std::vector<HeadLosses>& entries = losses.layers.emplace_back();
    if (layer_shape.kv_heads == 0) continue;
    Result<FormatChoices> resolved = resolve_choices(choices, layer_shape, page_tokens, layer);
    if (!resolved) return std::move(resolved).take_status();
    entries.resize(per == RecipePer::Head ? static_cast<std::size_t>(layer_shape.kv_heads) : 1);
    for (const Role tensor : {Role::Keys, Role::Values}) {
      if (tensor == Role::Values && layer_shape.values_in_keys) continue;
      if (const Status status = fill(layer, tensor, resolved->of(tensor), entries); !status.ok())
        return Status::error(status.code(), "layer %zu, %s: %.*s", layer, to_string(tensor),
                             static_cast<int>(status.message().size()), status.message().data());
    }
  }
  return losses;
}

/// InvalidArgument if values are in the keys: sources of losses that look at keys alone, or at values
/// alone, cannot tell what both lose.
inline Status check_values_apart(const LayerShape& shape) {
  if (!shape.values_in_keys) return {};
  return Status::error(ErrorCode::InvalidArgument,
                       "values are in them: only losses_from_divergence() tells what both lose");
}

}  // namespace detail

}  // namespace kvtilt
