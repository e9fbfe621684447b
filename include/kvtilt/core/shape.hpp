// SPDX-License-Identifier: MIT
/// Shapes of a model's attention layers, as a cache needs them.
#pragma once

#include <kvtilt/core/status.hpp>

#include <cstddef>
#include <cstdio>
#include <vector>

namespace kvtilt {

inline constexpr int max_head_dim = 576;
inline constexpr int max_kv_heads = 1024;

/// One layer. Layers of a model may differ; a layer with kv_heads = 0 keeps no cache.
struct LayerShape {
  int kv_heads = 0;
  int key_dim = 0;          ///< channels of a key per head: a multiple of 8, at most 576
  int value_dim = 0;        ///< channels of a value per head: a multiple of 8, at most 576
  int window = 0;           ///< newest positions that a query sees, its own included; 0: all
  bool keep_sinks = false;  ///< a sequence's first tokens (sinks) stay visible outside the window
  /// A value is the first value_dim channels of its key: attention reads it there, and it is neither
  /// appended nor stored. CPU only.
  bool values_in_keys = false;

  friend constexpr bool operator==(const LayerShape&, const LayerShape&) = default;

  /// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, 2.1) with its up-projections absorbed
  /// into queries and outputs: all query heads share one latent of `rank` channels, the value, which
  /// `rope_dim` rotated channels follow in the key. DeepSeek-V3: latent(512, 64). Attention needs the
  /// model's own scale (AttendOptions::scale): the default would be that of the latent.
  [[nodiscard]] static constexpr LayerShape latent(int rank, int rope_dim) {
    LayerShape shape{1, rank + rope_dim, rank};
    shape.values_in_keys = true;
    return shape;
  }

  /// What is stored of one token, keys and values of all heads.
  [[nodiscard]] constexpr std::size_t elements_per_token() const {
    return static_cast<std::size_t>(kv_heads) *
           static_cast<std::size_t>(key_dim + (values_in_keys ? 0 : value_dim));
  }
};

/// All layers of a model.
struct CacheShape {
  std::vector<LayerShape> layers;

  /// The common case: all layers alike, keys and values of head_dim channels.
  [[nodiscard]] static CacheShape uniform(int layers, int kv_heads, int head_dim) {
    const std::size_t count = layers > 0 ? static_cast<std::size_t>(layers) : 0;
    return {std::vector<LayerShape>(count, LayerShape{kv_heads, head_dim, head_dim, 0})};
  }
};

/// The layer number to pass if a layer has none.
inline constexpr int unnumbered_layer = -1;

/// The prefix of messages: "layer 3: ", or nothing if the layer has no number.
struct LayerName {
  char text[24] = "";
  explicit LayerName(int layer) {
    if (layer >= 0) std::snprintf(text, sizeof text, "layer %d: ", layer);
  }
};

/// The error of one layer among others: `error` with the layer's name in front.
inline Status in_layer(std::size_t layer, const Status& error) {
  return Status::error(error.code(), "%s%.*s", LayerName(static_cast<int>(layer)).text,
                       static_cast<int>(error.message().size()), error.message().data());
}

/// Checks a layer's shape. `layer` is only used in the message.
///
/// Fails  InvalidArgument  names the offending number
inline Status check_shape(const LayerShape& shape, int layer) {
  if (shape.kv_heads < 0 || shape.kv_heads > max_kv_heads)
    return Status::error(ErrorCode::InvalidArgument, "%skv_heads is %d, must be 0 (no cache) to %d",
                         LayerName(layer).text, shape.kv_heads, max_kv_heads);
  if (shape.window < 0)
    return Status::error(ErrorCode::InvalidArgument,
                         "%swindow is %d, must be 0 (unlimited) or more", LayerName(layer).text,
                         shape.window);
  if (shape.kv_heads == 0) return {};
  for (const int dim : {shape.key_dim, shape.value_dim})
    if (dim < 8 || dim > max_head_dim || dim % 8 != 0)
      return Status::error(ErrorCode::InvalidArgument,
                           "%shead dimensions are key %d, value %d; both must be "
                           "multiples of 8 from 8 to %d",
                           LayerName(layer).text, shape.key_dim, shape.value_dim, max_head_dim);
  if (shape.values_in_keys && shape.value_dim > shape.key_dim)
    return Status::error(ErrorCode::InvalidArgument,
                         "%svalues of %d channels cannot be in keys of %d", LayerName(layer).text,
                         shape.value_dim, shape.key_dim);
  return {};
}

inline Status check_shape(const CacheShape& shape) {
  if (shape.layers.empty())
    return Status::error(ErrorCode::InvalidArgument, "the shape has no layers");
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer)
    KVTILT_RETURN_IF_ERROR(check_shape(shape.layers[layer], static_cast<int>(layer)));
  return {};
}

}  // namespace kvtilt
