// SPDX-License-Identifier: MIT
/// Tells which kernel of a list attention over a layer would run; needs neither a cache nor a device.
#pragma once

#include <kvtilt/cuda/attention/checks.hpp>
#include <kvtilt/cuda/attention/default_kernels.hpp>
#include <kvtilt/cuda/attention/prefill_tile.hpp>

#include <utility>
#include <vector>

namespace kvtilt::cuda {

enum class KernelKind {
  Fast,     ///< compiled for the recipes
  Generic,  ///< reads them at run time: several times the instructions, in prefill twice
};

namespace detail {

/// Kind of the first kernel that serves such layers, generic ones last; Unsupported without one.
template <class... Pages>
Result<KernelKind> attention_kernel(AttendKernels<Pages...>, const ServedLayers& layers) {
  if (((!Pages::generic && fits<Pages>(layers)) || ...)) return KernelKind::Fast;
  if (((Pages::generic && fits<Pages>(layers)) || ...)) return KernelKind::Generic;
  if (layers.shape.values_in_keys)
    return no_kernel(layers, "create<kvtilt::cuda::LatentKernels<key_dim, value_dim>>");
  return no_kernel(
      layers,
      "create<kvtilt::cuda::KernelsFor<key_dim, value_dim>>, or add to your AttendKernels a "
      "GenericTraits of these dimensions or a PageTraits, in MixedTraits where heads differ");
}
template <class... Pages>
Result<KernelKind> prefill_kernel(AttendKernels<Pages...>, const ServedLayers& layers) {
  bool known = false;
  [[maybe_unused]] const auto takes = [&](auto pages, bool generic) {
    using Own = decltype(pages);
    if (Own::generic != generic || !prefills(pages) || !fits<Own>(layers)) return false;
    known = decodes_known_pages(pages);
    return true;
  };
  if ((takes(Pages{}, false) || ...) || (takes(Pages{}, true) || ...))
    return known ? KernelKind::Fast : KernelKind::Generic;
  return no_kernel(
      layers,
      "create<kvtilt::cuda::KernelsFor<key_dim, value_dim>>, or add to your AttendKernels "
      "a GenericTraits of these dimensions or a PageTraits; values have at most 256 "
      "channels and are not in the keys: else append, then attend");
}

}  // namespace detail

/// Tells which kind of kernel Attention::create<List> picks for these arguments. On a device with
/// little shared memory create() may still fall back to the generic kernel, or fail.
///
/// recipes  one for all kv heads, or one per kv head
/// Fails    InvalidArgument  no cache can have such a layer
///          Unsupported      the list has no such kernel; names what to add. A cache may still hold
///                           such pages: supports()
template <class List = DefaultKernels>
Result<KernelKind> supports_attention(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                      int page_tokens = 64) {
  Result<ServedLayers> layers = ServedLayers::make(shape, recipes, page_tokens);
  if (!layers) return std::move(layers).take_status();
  return detail::attention_kernel(List{}, *layers);
}
template <class List = DefaultKernels>
Result<KernelKind> supports_attention(const LayerShape& shape, const Recipe& recipe,
                                      int page_tokens = 64) {
  return supports_attention<List>(shape, std::vector<Recipe>{recipe}, page_tokens);
}

/// The same for PrefillAttention::create<List>.
template <class List = DefaultKernels>
Result<KernelKind> supports_prefill(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                    int page_tokens = 64) {
  Result<ServedLayers> layers = ServedLayers::make(shape, recipes, page_tokens);
  if (!layers) return std::move(layers).take_status();
  return detail::prefill_kernel(List{}, *layers);
}
template <class List = DefaultKernels>
Result<KernelKind> supports_prefill(const LayerShape& shape, const Recipe& recipe,
                                    int page_tokens = 64) {
  return supports_prefill<List>(shape, std::vector<Recipe>{recipe}, page_tokens);
}

}  // namespace kvtilt::cuda
