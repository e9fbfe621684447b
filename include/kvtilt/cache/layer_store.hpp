// SPDX-License-Identifier: MIT
/// One layer of a cache without its sequences: shape, layouts and pools, and how rows become bytes.
#pragma once

#include <kvtilt/cache/block_pools.hpp>
#include <kvtilt/cache/input_check.hpp>
#include <kvtilt/cache/options.hpp>
#include <kvtilt/cache/sequence_layer.hpp>
#include <kvtilt/core/memory_report.hpp>
#include <kvtilt/core/row_check.hpp>
#include <kvtilt/cpu/half_rows.hpp>
#include <kvtilt/cpu/kernel_table.hpp>
#include <kvtilt/cpu/layer_view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace kvtilt {

struct LayerStore {
  LayerShape shape;
  TokenPlacement placement;  ///< with the layer's window
  LayerLayouts layouts;
  int pools[page_kinds] = {};  ///< index of the pool of each kind's blocks

  [[nodiscard]] const PageLayout& layout(PageKind kind) const {
    return layouts[static_cast<std::size_t>(kind)];
  }
  [[nodiscard]] int pool(PageKind kind) const { return pools[static_cast<int>(kind)]; }

  [[nodiscard]] static LayerStore make(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                       const TokenPlacement& placement) {
    LayerStore store{};
    store.shape = shape;
    store.placement = placement;
    store.layouts =
        make_layer_layouts(shape, recipes, placement.page_tokens, placement.sink_tokens);
    return store;
  }

  /// A view of this layer without any page or token.
  [[nodiscard]] LayerView empty_view() const {
    LayerView view;
    view.shape = shape;
    for (int kind = 0; kind < page_kinds; ++kind) {
      const PageLayout& one = layout(static_cast<PageKind>(kind));
      view.heads[kind] = one.heads.data();
      view.max_page_tokens = std::max(view.max_page_tokens, one.tokens);
    }
    return view;
  }

  /// Registers with the pools the blocks that a sequence lacks in this layer.
  void want(const BlockCounts& blocks, BlockPools& from) const {
    from.want(pool(PageKind::Sinks), blocks.sinks);
    from.want(pool(PageKind::Tail), blocks.tail);
    from.want(pool(PageKind::Sealed), blocks.sealed);
  }

  /// Adds to the report `entries` pages of one kind that hold `tokens` tokens in total.
  void add_usage(PageKind kind, std::int64_t entries, std::int64_t tokens,
                 MemoryReport& report) const {
    const std::size_t elements = static_cast<std::size_t>(tokens) * shape.elements_per_token();
    const std::size_t count = static_cast<std::size_t>(entries);
    report.elements += static_cast<std::int64_t>(elements);
    report.table_bytes += count * sizeof(PageEntry);
    if (kind == PageKind::Sealed) report.page_bytes += count * layout(kind).bytes;
    if (kind == PageKind::Tail) report.tail_bytes += elements * sizeof(F16);
    if (kind == PageKind::Sinks) report.sink_bytes += elements * sizeof(F16);
  }

  /// InvalidValue, naming the first element (by head, keys first) that cannot be stored.
  [[nodiscard]] Status check_values(const cpu::Kernels& kernels, const TensorView& keys,
                                    const TensorView& values, int layer) const {
    if (all_storable(kernels, keys, values)) return {};
    for (int head = 0; head < shape.kv_heads; ++head) {
      const HeadLayout& sealed = layout(PageKind::Sealed).heads[static_cast<std::size_t>(head)];
      KVTILT_RETURN_IF_ERROR(check_tensor(keys, head, sealed.key.format, "key", layer));
      KVTILT_RETURN_IF_ERROR(check_tensor(values, head, sealed.value.format, "value", layer));
    }
    return {};
  }

  /// Stores `count` tokens, from row `token` on, in a 16-bit block from slot `slot` on.
  void write_tokens(const cpu::Kernels& kernels, const TensorView& keys, const TensorView& values,
                    std::int64_t token, int count, PageKind kind, std::byte* block,
                    int slot) const {
    for (int index = 0; index < shape.kv_heads; ++index) {
      const HeadLayout& head = layout(kind).heads[static_cast<std::size_t>(index)];
      cpu::write_half_rows(kernels, keys, values, {token, count, index}, head, block + head.offset,
                           slot);
    }
  }

  /// Quantizes a full 16-bit block into a page.
  void fill_page(const cpu::Kernels& kernels, const SequenceLayer::Sealing& sealing) const {
    std::memset(sealing.page, 0, layout(PageKind::Sealed).bytes);
    for (std::size_t index = 0; index < static_cast<std::size_t>(shape.kv_heads); ++index) {
      const HeadLayout& half = layout(PageKind::Tail).heads[index];
      const HeadLayout& packed = layout(PageKind::Sealed).heads[index];
      const std::byte* from = sealing.block + half.offset;
      std::byte* to = sealing.page + packed.offset;
      kernels.pack[cpu::width_slot(packed.key.format.bits)](half.key, from, packed.key, to);
      kernels.pack[cpu::width_slot(packed.value.format.bits)](half.value, from, packed.value, to);
    }
  }

 private:
  /// Whether all elements can be stored; reads them in the order in which they lie in memory.
  [[nodiscard]] bool all_storable(const cpu::Kernels& kernels, const TensorView& keys,
                                  const TensorView& values) const {
    bool bad = false;
    for (std::int64_t token = 0; token < keys.tokens && !bad; ++token)
      for (int index = 0; index < shape.kv_heads; ++index) {
        const HeadLayout& sealed = layout(PageKind::Sealed).heads[static_cast<std::size_t>(index)];
        bad |= kernels.exceeds(cpu::row_address(keys, token, index), keys.type, keys.dim,
                               largest_magnitude(sealed.key.format));
        bad |= kernels.exceeds(cpu::row_address(values, token, index), values.type, values.dim,
                               largest_magnitude(sealed.value.format));
      }
    return !bad;
  }

  static Status check_tensor(const TensorView& tensor, int head, const Format& format,
                             const char* name, int layer) {
    BadElement bad{};
    const float limit = largest_magnitude(format);
    if (!find_bad_element(tensor, head, limit, bad)) return {};
    return Status::error(ErrorCode::InvalidValue,
                         "%s%s of token %lld, kv head %d, channel %d is %g; %d-bit formats hold "
                         "finite magnitudes up to %g",
                         LayerName(layer).text, name, static_cast<long long>(bad.token), bad.head,
                         bad.channel, static_cast<double>(bad.value), format.bits,
                         static_cast<double>(limit));
  }
};

/// Makes the layers of a cache and their pools; fails with the first error in the arguments, so that
/// no later call fails for one.
template <class FormatList>
Result<std::vector<LayerStore>> make_layer_stores(const CacheShape& shape, const Plan& plan,
                                                  const CacheOptions& options, BlockPools& pools) {
  KVTILT_RETURN_IF_ERROR(check_shape(shape));
  Result<Plan> resolved = resolve_plan(plan, shape, options.page_tokens);
  if (!resolved) return std::move(resolved).take_status();
  std::vector<LayerStore> stores;
  for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
    const LayerShape& layer_shape = shape.layers[layer];
    if (layer_shape.kv_heads > 0)
      for (const Recipe& recipe : plan.recipes[layer])
        if (const Status one = supports<FormatList>(layer_shape, recipe, options.page_tokens);
            !one.ok())
          return in_layer(layer, one);
    stores.push_back(LayerStore::make(layer_shape, resolved->recipes[layer],
                                      token_placement(options, layer_shape)));
    for (int kind = 0; kind < page_kinds; ++kind)
      stores.back().pools[kind] =
          pools.pool_for(stores.back().layout(static_cast<PageKind>(kind)).bytes);
  }
  return stores;
}

}  // namespace kvtilt
