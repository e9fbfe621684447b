// SPDX-License-Identifier: MIT
/// Random sequences in one layer of a CPU cache, for attention kernels in the emulator.
#pragma once

#include "support/device_attention.hpp"
#include "support/fragment_code.hpp"
#include "support/random_input.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::test {

inline Format per_token(int bits, int group = 0) {
  return key_format(bits, Granularity::PerToken, group);
}
inline Format per_channel(int bits, int group = 0) {
  return key_format(bits, Granularity::PerChannel, group);
}

/// Sequences of one layer; only sinks and the newest tokens, up to a page and 3, are in 16 bits.
struct CachedLayer {
  LayerShape shape;
  std::vector<Recipe> recipes;  ///< one, or one per kv head
  CacheOptions options;
  KVCache cache;
  std::vector<SequenceId> ids;

  CachedLayer(Random& random, const LayerShape& shape_, const std::vector<Recipe>& recipes_,
              const std::vector<std::int64_t>& lengths, int page_tokens = 32, float spread = 1.0f,
              float offset = 0.5f)
      : shape(shape_),
        recipes(recipes_),
        options(make_options(page_tokens)),
        cache(make_cache(CacheShape{{shape}}, Plan{{recipes}}, options)) {
    for (const std::int64_t length : lengths) {
      ids.push_back(open_reserved(cache, length));
      const Rows<float> keys =
          random_rows(random, length, shape.kv_heads, shape.key_dim, spread, offset);
      const Rows<float> values = random_rows(random, length, shape.kv_heads, shape.value_dim);
      KVTILT_EXPECT_OK(
          cache.append(ids.back(), 0, keys.view(), stored_apart(shape, values.view())));
    }
  }
  [[nodiscard]] std::vector<LayerView> views() const {
    std::vector<LayerView> views;
    for (const SequenceId id : ids) views.push_back(cache.view(id, 0).value());
    return views;
  }
  [[nodiscard]] DeviceLayer device() const { return {views(), recipes, options}; }

 private:
  static CacheOptions make_options(int page_tokens) {
    CacheOptions options;
    options.page_tokens = page_tokens;
    options.recent_tokens = 3;
    return options;
  }
};

template <class Traits>
testing::AssertionResult is_close(const CachedLayer& layer, Random& random,
                                  const EmulatedLaunch& launch = {2, 2, 0, {}}) {
  const int count = static_cast<int>(layer.ids.size());
  const Rows<float> queries = random_queries(random, layer.shape, count, 2);
  const Output output = emulated_attend<Traits>(layer.device(), queries, {}, launch);
  return is_close(layer.views(), queries, {}, output);
}

/// Fills the slots from `tokens` on of every sealed page with data that must not reach a result.
inline void poison(const DeviceLayer& device, int tokens) {
  const cuda::LayerView& layer = device.layer();
  const auto fill = [&](std::byte* block, const TensorLayout& tensor, Role role, int dim) {
    const bool per_channel = tensor.group_along_outer == (role == Role::Keys);
    for (int token = tokens; token < layer.page_tokens; ++token) {
      for (int channel = 0; channel < dim; ++channel) {
        const int outer = role == Role::Keys ? token : channel;
        const int inner = role == Role::Keys ? channel : token;
        if (tensor.format.quantized())
          write_fragment_code(role, reinterpret_cast<std::uint8_t*>(block + tensor.codes),
                              tensor.matrix, tensor.format.bits, outer, inner,
                              (1 << tensor.format.bits) - 1);
        else
          std::memset(block + tensor.codes + cuda::half_offset(role, tensor.matrix, outer, inner),
                      0xff, 2);
      }
      for (int band = 0; band < tensor.bands(); ++band) {
        F16* scales = tensor.scales(block, band);
        if (!per_channel) scales[token] = scales[tensor.pitch() + token] = F16{0xffff};
        if (per_channel && band * tensor.format.group >= tokens)
          std::fill_n(scales, tensor.pitch() * 2, F16{0xffff});
      }
    }
  };
  const cuda::SequenceState& state = layer.states[0];
  for (int i = state.first_page; i < state.page_end; ++i) {
    std::byte* page = layer.block(PageKind::Sealed, layer.table(0)[i].page);
    for (int head = 0; head < layer.kv_heads; ++head) {
      const HeadLayout& layout = layer.head(PageKind::Sealed, head);
      fill(page + layout.offset, layout.key, Role::Keys, layer.key_dim);
      fill(page + layout.offset, layout.value, Role::Values, layer.stored_values());
    }
  }
}

}  // namespace kvtilt::test
