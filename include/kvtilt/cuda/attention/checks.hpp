// SPDX-License-Identifier: MIT
/// Host-side checks of attention launches, before anything is queued.
#pragma once

#include <kvtilt/core/attend_options.hpp>
#include <kvtilt/core/row_check.hpp>
#include <kvtilt/cuda/attention/arguments.hpp>
#include <kvtilt/cuda/attention/mixed_pages.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/page/convert_page.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/format.hpp>
#include <kvtilt/quant/plan.hpp>
#include <kvtilt/quant/recipe.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::cuda {

/// Most sequences in one launch: shared memory holds where the units of each start.
inline constexpr int max_attend_sequences = 1024;

/// Names the recipes in an error message.
inline std::string recipe_names(const std::vector<Recipe>& recipes) {
  return to_string(recipes[0]) + (recipes.size() > 1 ? " and other heads' recipes" : "");
}

/// The layers that an attention object serves: all whose sealed pages have this layout.
struct ServedLayers {
  LayerShape shape;
  std::vector<Recipe> recipes;  ///< resolved: one, or one per kv head
  int page_tokens = 0;
  std::uint64_t fingerprint = 0;  ///< LayerView::fingerprint
  std::size_t page_bytes = 0;

  /// InvalidArgument if no cache can have such a layer, Unsupported if none on a GPU can.
  static Result<ServedLayers> make(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                   int page_tokens) {
    KVTILT_RETURN_IF_ERROR(check_shape(shape, unnumbered_layer));
    if (shape.kv_heads == 0)
      return Status::error(ErrorCode::InvalidArgument,
                           "a layer of 0 kv heads keeps no cache to attend to");
    KVTILT_RETURN_IF_ERROR(check_page_tokens(page_tokens));
    Result<std::vector<Recipe>> resolved = resolve_recipes(recipes, shape, page_tokens);
    if (!resolved) return std::move(resolved).take_status();
    const PageLayout layout = PageLayout::make(shape, *resolved, page_tokens);
    return ServedLayers{shape, std::move(*resolved), page_tokens, layout_fingerprint(layout),
                        layout.bytes};
  }

  /// Whether every kv head gets the same number of query heads, at least one.
  [[nodiscard]] bool takes(int query_heads) const {
    return shape.kv_heads > 0 && query_heads > 0 && query_heads % shape.kv_heads == 0;
  }
  /// InvalidArgument unless the layer has this shape, and its pages this layout.
  [[nodiscard]] Status check(const LayerView& layer) const {
    if (layer.kv_heads != shape.kv_heads || layer.key_dim != shape.key_dim ||
        layer.value_dim != shape.value_dim || layer.page_tokens != page_tokens)
      return Status::error(
          ErrorCode::InvalidArgument,
          "the layer has %d kv heads of %d and %d in pages of %d; this is for %d kv "
          "heads of %d and %d in pages of %d",
          layer.kv_heads, layer.key_dim, layer.value_dim, layer.page_tokens, shape.kv_heads,
          shape.key_dim, shape.value_dim, page_tokens);
    if (layer.fingerprint != fingerprint)
      return Status::error(ErrorCode::InvalidArgument,
                           "the layer's pages are not those of %s, which this was created for: "
                           "create one with the layer's own recipes",
                           recipe_names(recipes).c_str());
    return {};
  }
};

/// Whether the codes of these resolved recipes fill whole 32-bit words of such pages, as kernels need
/// (fragment_order.hpp).
inline bool supports_order(const LayerShape& shape, const std::vector<Recipe>& recipes,
                           int page_tokens) {
  for (const Recipe& recipe : recipes)
    if (!supports_order({page_tokens, shape.key_dim}, recipe.key.bits) ||
        !supports_order({shape.value_dim, page_tokens}, recipe.value.bits))
      return false;
  return true;
}

/// A list of kernels to compile: a PageTraits or HalfTraits for each recipe that should be fast, a
/// MixedTraits for layers whose heads have different ones of these recipes, a GenericTraits for all
/// other recipes at its head dimensions.
template <class... Pages>
struct AttendKernels {};

/// Whether a kernel serves heads of one resolved recipe.
template <class Pages>
bool serves(Pages, const Recipe& recipe, int page_tokens) {
  if constexpr (Pages::generic)
    return Pages::supports(recipe, page_tokens);
  else
    return Pages::page_tokens == page_tokens && Pages::describes(recipe.key, recipe.value);
}
template <class... Pages>
bool serves(MixedTraits<Pages...>, const Recipe& recipe, int page_tokens) {
  return (serves(Pages{}, recipe, page_tokens) || ...);
}

/// Whether a kernel serves all heads of a layer; only a mixed or generic one allows different formats.
template <class Pages>
bool fits(const LayerShape& shape, const std::vector<Recipe>& recipes, int page_tokens) {
  if (Pages::key_dim != shape.key_dim || Pages::value_dim != shape.value_dim ||
      !is_page_size(page_tokens))
    return false;
  return std::all_of(recipes.begin(), recipes.end(),
                     [&](const Recipe& recipe) { return serves(Pages{}, recipe, page_tokens); });
}

template <class Pages>
bool fits(const ServedLayers& layers) {
  return fits<Pages>(layers.shape, layers.recipes, layers.page_tokens);
}

/// Returns Unsupported: a list has no kernel for these recipes. `remedy` tells what to add to it.
inline Status no_kernel(const ServedLayers& layers, const char* remedy) {
  const LayerShape& shape = layers.shape;
  const int page_tokens = layers.page_tokens;
  return Status::error(
      ErrorCode::Unsupported,
      "no attention kernel for %s with head dimensions %d and %d in pages of %d tokens: %s",
      recipe_names(layers.recipes).c_str(), shape.key_dim, shape.value_dim, page_tokens,
      !supports_order(shape, layers.recipes, page_tokens)
          ? "codes of such pages do not fill the words of the GPU's order; larger pages, head "
            "dimensions that are multiples of 32, or 4, 8 or 16 bits do"
          : remedy);
}

/// InvalidArgument unless the workspace has the bytes that a launch needs, aligned to 16.
inline Status check_workspace(std::span<std::byte> workspace, std::size_t needed) {
  if (workspace.size() < needed)
    return Status::error(ErrorCode::InvalidArgument, "the workspace has %zu bytes, %zu are needed",
                         workspace.size(), needed);
  if (workspace.data() == nullptr && !workspace.empty())
    return Status::error(ErrorCode::InvalidArgument, "the workspace is null, with %zu bytes",
                         workspace.size());
  if (reinterpret_cast<std::uintptr_t>(workspace.data()) % 16 != 0)
    return Status::error(ErrorCode::InvalidArgument,
                         "the workspace at %p is not aligned to 16 bytes",
                         static_cast<void*>(workspace.data()));
  return {};
}

/// InvalidArgument unless the arguments of a launch over such layers are valid.
///
/// queries  [rows, query_heads, key_dim]
/// each     rows of each sequence if the host knows them (no indptr), else 0
inline Status check_launch(const ServedLayers& layers, const LayerView& layer, const Batch& batch,
                           const TensorView& queries, const MutableTensorView& out,
                           const DeviceAttendOptions& options, std::int64_t each) {
  constexpr ErrorCode invalid = ErrorCode::InvalidArgument;
  if (batch.count < 0 || batch.count > max_attend_sequences)
    return Status::error(invalid, "a launch attends to at most %d sequences, not %d",
                         max_attend_sequences, batch.count);
  KVTILT_RETURN_IF_ERROR(layers.check(layer));
  KVTILT_RETURN_IF_ERROR(kvtilt::detail::check_queries(layers.shape, queries, out.tokens, out.heads,
                                                       out.dim, out.data));
  KVTILT_RETURN_IF_ERROR(kvtilt::detail::check_type(out.type, "outputs", kvtilt::unnumbered_layer));
  if (batch.count == 0 && queries.tokens > 0)
    return Status::error(invalid, "%lld queries of 0 sequences",
                         static_cast<long long>(queries.tokens));
  AttendOptions common;  // the options that are not arrays
  common.scale = options.scale;
  common.soft_cap = options.soft_cap;
  common.window = options.window;
  common.first_position = options.first_position;
  common.end_position = options.end_position;
  common.causal = options.causal;
  LayerShape windowed = layers.shape;
  windowed.window = layer.window;
  KVTILT_RETURN_IF_ERROR(check_attend_options(common, windowed, each, queries.heads));
  if (options.tree_mask != nullptr && !options.causal)
    return Status::error(invalid,
                         "a tree mask says what is seen of a sequence's rows: causal = false "
                         "cannot say it, too");
  if (options.tree_mask != nullptr && each > most_tree_tokens)
    return Status::error(invalid, "a tree mask holds at most %d queries, not %lld",
                         most_tree_tokens, static_cast<long long>(each));
  if (options.tree_tokens != nullptr && options.tree_mask == nullptr)
    return Status::error(invalid, "tree_tokens without a tree mask");
  return {};
}

}  // namespace kvtilt::cuda
