// SPDX-License-Identifier: MIT
/// Plans the memory of a device cache before any is allocated: how much, and what lies where.
#pragma once

#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/cache/options.hpp>
#include <kvtilt/cuda/cache/saved_layer.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/page/seal_head.hpp>
#include <kvtilt/cuda/page/seal_slice.hpp>
#include <kvtilt/page/layer_layouts.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/quant/plan.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt::cuda {

/// The exact number of bytes that KVCache::create allocates, all at once, by purpose.
struct MemoryPlan {
  std::size_t sink_bytes = 0;   ///< 16-bit blocks of the first tokens, of all sequence slots
  std::size_t tail_bytes = 0;   ///< 16-bit blocks of the newest tokens, of all sequence slots
  std::size_t page_bytes = 0;   ///< quantized pages
  std::size_t table_bytes = 0;  ///< page tables and lengths
  std::size_t other_bytes = 0;  ///< layouts, the record of errors, padding

  [[nodiscard]] std::size_t device_bytes() const {
    return sink_bytes + tail_bytes + page_bytes + table_bytes + other_bytes;
  }
};

namespace detail {

inline constexpr std::size_t device_alignment = 256;

/// One layer: its shape and layouts, and byte offsets from the start of the cache's memory.
struct DeviceLayer {
  LayerShape shape;
  TokenPlacement placement;
  LayerLayouts layouts;
  std::int32_t pages;  ///< in the layer's pool
  std::int64_t table_stride;
  std::size_t pools[page_kinds];
  std::size_t heads[page_kinds];
  std::size_t slices;
  std::size_t states;
  std::size_t tables;
  std::size_t arrivals;

  [[nodiscard]] const PageLayout& layout(PageKind kind) const {
    return layouts[static_cast<std::size_t>(kind)];
  }
  [[nodiscard]] std::size_t& pool(PageKind kind) { return pools[static_cast<int>(kind)]; }

  /// The most pages that a sequence with a window uses at once: then each new one frees another.
  [[nodiscard]] std::int64_t window_pages() const {
    return placement.window / placement.page_tokens + 2;
  }
};

struct DeviceLayout {
  std::vector<DeviceLayer> layers;
  std::size_t views = 0;   ///< LayerView [layers]
  std::size_t record = 0;  ///< DeviceRecords
  std::size_t slots = 0;   ///< int32 0, 1, 2, ...: the slots of one-sequence batches
  std::size_t saved = 0;   ///< SavedResult
  MemoryPlan plan;
};

/// Hands out offsets and counts the bytes by purpose.
class OffsetCounter {
 public:
  /// Takes `count` times `bytes` for `purpose` and returns the offset; the padding to a multiple of
  /// 256 counts as `other`.
  std::size_t take(std::size_t count, std::size_t bytes, std::size_t& purpose, std::size_t& other) {
    fits_ = fits_ && (bytes == 0 || count <= (most - end_) / bytes);
    if (!fits_) return 0;
    const std::size_t offset = end_;
    const std::size_t padded = round_up(count * bytes, device_alignment);
    purpose += count * bytes;
    other += padded - count * bytes;
    end_ += padded;
    return offset;
  }
  [[nodiscard]] bool fits() const { return fits_; }

 private:
  static constexpr std::size_t most = std::size_t{1} << 62;
  std::size_t end_ = 0;
  bool fits_ = true;
};

/// The part of a caller's memory that a cache can use: from the first multiple of 256 on.
inline std::span<std::byte> usable_memory(std::span<std::byte> given) {
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(given.data()) % device_alignment;
  const std::size_t lost = misaligned == 0 ? 0 : device_alignment - misaligned;
  return given.subspan(std::min(lost, given.size()));
}

/// How a layer's pages are split into slices for sealing, for LayerView::slices.
inline std::vector<HeadSlices> make_slices(const PageLayout& sealed) {
  std::vector<HeadSlices> slices;
  for (const HeadLayout& head : sealed.heads) slices.emplace_back(head);
  return slices;
}

inline DeviceLayer make_device_layer(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                     const CacheOptions& options) {
  DeviceLayer layer{};
  layer.shape = shape;
  layer.placement = token_placement(options, shape);
  if (shape.kv_heads == 0) return layer;
  layer.layouts = make_layer_layouts(shape, recipes, options.page_tokens, options.sink_tokens);

  const std::int64_t total = options.token_capacity / options.page_tokens;
  const std::int64_t own = options.longest() / options.page_tokens;
  layer.pages = static_cast<std::int32_t>(total);
  layer.table_stride = own + 1;
  if (shape.window > 0) {
    const std::int64_t most = options.max_sequences * layer.window_pages();
    layer.pages = static_cast<std::int32_t>(std::min(total, most));
  }
  return layer;
}

/// Lays out a cache's memory, or returns the first error in the arguments.
inline Result<DeviceLayout> make_device_layout(const CacheShape& shape, const Plan& plan,
                                               const CacheOptions& options) {
  KVTILT_RETURN_IF_ERROR(check_options(options));
  KVTILT_RETURN_IF_ERROR(check_shape(shape));
  if (shape.layers.size() > static_cast<std::size_t>(max_layers))
    return Status::error(ErrorCode::Unsupported, "the shape has %zu layers; on a GPU at most %d",
                         shape.layers.size(), max_layers);
  Result<Plan> resolved = resolve_plan(plan, shape, options.page_tokens);
  if (!resolved) return std::move(resolved).take_status();

  DeviceLayout layout;
  OffsetCounter offsets;
  MemoryPlan& bytes = layout.plan;
  const auto other = [&](std::size_t count) {
    return offsets.take(count, 1, bytes.other_bytes, bytes.other_bytes);
  };
  layout.record = other(sizeof(DeviceRecords));
  layout.saved = other(sizeof(SavedResult));
  layout.views = other(shape.layers.size() * sizeof(LayerView));
  const std::size_t sequences = static_cast<std::size_t>(options.max_sequences);
  layout.slots = other(sequences * sizeof(std::int32_t));
  for (std::size_t index = 0; index < shape.layers.size(); ++index) {
    const LayerShape& layer_shape = shape.layers[index];
    if (layer_shape.kv_heads > 0)
      for (const Recipe& recipe : plan.recipes[index])
        if (const Status one = supports(layer_shape, recipe, options.page_tokens); !one.ok())
          return in_layer(index, one);
    layout.layers.push_back(make_device_layer(layer_shape, resolved->recipes[index], options));
    DeviceLayer& layer = layout.layers.back();
    if (layer_shape.kv_heads == 0) continue;

    const std::size_t ring = sequences * static_cast<std::size_t>(layer.placement.ring_blocks());
    const std::size_t rows = sequences * static_cast<std::size_t>(layer.table_stride);
    const auto pool = [&](PageKind kind, std::size_t blocks, std::size_t& purpose) {
      layer.pool(kind) = offsets.take(blocks, layer.layout(kind).bytes, purpose, bytes.other_bytes);
    };
    pool(PageKind::Sinks, sequences, bytes.sink_bytes);
    pool(PageKind::Tail, ring, bytes.tail_bytes);
    pool(PageKind::Sealed, static_cast<std::size_t>(layer.pages), bytes.page_bytes);
    for (std::size_t& heads : layer.heads)
      heads = other(static_cast<std::size_t>(layer_shape.kv_heads) * sizeof(HeadLayout));
    layer.slices = other(static_cast<std::size_t>(layer_shape.kv_heads) * sizeof(HeadSlices));
    layer.states =
        offsets.take(sequences, sizeof(SequenceState), bytes.table_bytes, bytes.other_bytes);
    layer.tables = offsets.take(rows, sizeof(PageSlot), bytes.table_bytes, bytes.other_bytes);
    layer.arrivals = other(sequences * sizeof(std::uint32_t));
  }
  if (!offsets.fits())
    return Status::error(ErrorCode::OutOfMemory,
                         "the cache takes more than 2^62 bytes of device memory");
  if (options.max_bytes != 0 && bytes.device_bytes() > options.max_bytes)
    return Status::error(ErrorCode::OutOfMemory,
                         "the cache takes %zu bytes of device memory; the limit is %zu",
                         bytes.device_bytes(), options.max_bytes);
  return layout;
}

/// Layer `index` as kernels see it, in cache memory that starts at `base`.
inline LayerView make_view(const DeviceLayout& layout, std::size_t index, std::byte* base) {
  const DeviceLayer& layer = layout.layers[index];
  LayerView view = describe_layer(layer.shape, layer.placement, layer.layouts);
  view.layer = static_cast<int>(index);
  view.records = reinterpret_cast<DeviceRecords*>(base + layout.record);
  if (layer.shape.kv_heads == 0) return view;
  for (const HeadLayout& head : layer.layout(PageKind::Sealed).heads)
    view.seal_bytes = std::max({view.seal_bytes, static_cast<int>(seal_shared_bytes(head)),
                                static_cast<int>(slice_shared_bytes(head))});
  for (int kind = 0; kind < page_kinds; ++kind) {
    view.heads[kind] = reinterpret_cast<const HeadLayout*>(base + layer.heads[kind]);
    view.pool[kind] = base + layer.pools[kind];
  }
  view.slices = reinterpret_cast<const HeadSlices*>(base + layer.slices);
  view.states = reinterpret_cast<SequenceState*>(base + layer.states);
  view.tables = reinterpret_cast<PageSlot*>(base + layer.tables);
  view.table_stride = layer.table_stride;
  view.arrivals = reinterpret_cast<std::uint32_t*>(base + layer.arrivals);
  return view;
}

}  // namespace detail

/// Returns the device memory that KVCache::create takes with these arguments. A quantized page has
/// as many bytes as on the CPU. Fails as create does, and with OutOfMemory beyond
/// options.max_bytes.
inline Result<MemoryPlan> plan_memory(const CacheShape& shape, const Plan& plan,
                                      const CacheOptions& options = {}) {
  Result<detail::DeviceLayout> layout = detail::make_device_layout(shape, plan, options);
  if (!layout) return std::move(layout).take_status();
  return layout->plan;
}

/// Returns the largest token_capacity, in whole pages, with which a cache fits options.max_bytes,
/// options.device_memory, or both; options.token_capacity has no influence. If max_sequence_tokens
/// is 0, each sequence's page table grows with the result: set it to what one sequence needs.
///
/// Fails  as create does; InvalidArgument if neither limit is set; OutOfMemory if not even one page
///        per layer fits
/// Cost   about 30 calls of plan_memory()
inline Result<std::int64_t> most_token_capacity(const CacheShape& shape, const Plan& plan,
                                                CacheOptions options) {
  KVTILT_RETURN_IF_ERROR(check_options(options));
  if (options.max_bytes == 0 && options.device_memory.empty())
    return Status::error(ErrorCode::InvalidArgument,
                         "max_bytes is 0 and device_memory is empty: nothing limits the tokens");
  if (!options.device_memory.empty()) {
    const std::size_t usable =
        std::max<std::size_t>(detail::usable_memory(options.device_memory).size(), 1);
    if (options.max_bytes == 0 || usable < options.max_bytes) options.max_bytes = usable;
  }
  const auto planned = [&](std::int64_t pages) {
    options.token_capacity = pages * options.page_tokens;
    return plan_memory(shape, plan, options);
  };
  if (Result<MemoryPlan> least = planned(1); !least) return std::move(least).take_status();
  std::int64_t fitting = 1;
  std::int64_t end = most_token_count / options.page_tokens + 1;
  while (end - fitting > 1) {
    const std::int64_t middle = fitting + (end - fitting) / 2;
    (planned(middle).ok() ? fitting : end) = middle;
  }
  return fitting * options.page_tokens;
}

}  // namespace kvtilt::cuda
