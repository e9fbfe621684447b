// SPDX-License-Identifier: MIT
/// One layer of CPU sequences in the GPU's layout, in host memory: for kernel bodies in the
/// emulator.
#pragma once

#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/page/convert_page.hpp>

#include "support/caches.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::test {

class DeviceLayer {
 public:
  /// `views` are one layer of sequences of the same cache; sequence i gets slot count - 1 - i.
  DeviceLayer(const std::vector<LayerView>& views, const std::vector<Recipe>& recipes,
              const CacheOptions& options)
      : count_(static_cast<int>(views.size())) {
    const LayerShape& shape = views[0].shape;
    std::vector<Recipe> resolved;
    for (const Recipe& recipe : recipes)
      resolved.push_back(resolve_recipe(recipe, shape, options.page_tokens).value());
    layouts_ = make_layer_layouts(shape, resolved, options.page_tokens, options.sink_tokens);
    layer_ = cuda::describe_layer(shape, token_placement(options, shape), layouts_);
    layer_.ring_blocks += 2;
    std::int64_t pages = 0;
    for (const LayerView& view : views) {
      pages += view.page_count;
      layer_.table_stride = std::max<std::int64_t>(layer_.table_stride, view.page_count + 1);
    }
    const std::int64_t blocks[page_kinds] = {count_, pages, count_ * layer_.ring_blocks};
    for (int kind = 0; kind < page_kinds; ++kind) {
      layer_.heads[kind] = layouts_[static_cast<std::size_t>(kind)].heads.data();
      // Memory without a token is NaN.
      pools_[kind].assign(static_cast<std::size_t>(blocks[kind] * layer_.block_bytes[kind]) + 64,
                          std::byte{0xff});
      layer_.pool[kind] = aligned(pools_[kind]);
    }
    states_.resize(views.size());
    tables_.resize(views.size() * static_cast<std::size_t>(layer_.table_stride));
    slots_.resize(views.size());
    layer_.states = states_.data();
    layer_.tables = tables_.data();
    for (int i = 0; i < count_; ++i) {
      slots_[static_cast<std::size_t>(i)] = count_ - 1 - i;
      add(views[static_cast<std::size_t>(i)], count_ - 1 - i);
    }
  }
  DeviceLayer(DeviceLayer&&) = default;

  [[nodiscard]] const cuda::LayerView& layer() const { return layer_; }
  void set_records(cuda::DeviceRecords* records) { layer_.records = records; }
  [[nodiscard]] std::size_t pool_bytes(int kind) const { return pools_[kind].size() - 64; }
  [[nodiscard]] cuda::Batch batch() const { return {slots_.data(), count_}; }

  /// Sets slots without a token to NaN: 16-bit elements, and scales and minima that belong only to
  /// such slots.
  void poison_absent(PageKind kind, std::int64_t index, int tokens) const {
    poison(layouts_[static_cast<std::size_t>(kind)], layer_.block(kind, index), tokens);
  }

 private:
  static void poison(const PageLayout& layout, std::byte* block, int tokens) {
    for (const HeadLayout& head : layout.heads) {
      poison_tensor(head.key, Role::Keys, block + head.offset, layout.tokens, tokens);
      poison_tensor(head.value, Role::Values, block + head.offset, layout.tokens, tokens);
    }
  }
  static void poison_tensor(const TensorLayout& tensor, Role role, std::byte* block, int slots,
                            int tokens) {
    const bool keys = role == Role::Keys;
    const int dim = keys ? tensor.matrix.inner : tensor.matrix.outer;
    for (int slot = tokens; slot < slots && !tensor.format.quantized(); ++slot)
      for (int c = 0; c < dim; ++c)
        std::memset(block + tensor.codes +
                        cuda::half_offset(role, tensor.matrix, keys ? slot : c, keys ? c : slot),
                    0xff, 2);
    const bool by_token = keys != tensor.group_along_outer;
    for (int band = 0; band < tensor.bands(); ++band)
      for (int i = 0; i < tensor.pitch(); ++i) {
        if ((by_token ? i : band * tensor.format.group) < tokens) continue;
        F16* scale = tensor.scales(block, band) + i;
        scale[0] = scale[tensor.pitch()] = F16{0xffff};
      }
  }

  static std::byte* aligned(std::vector<std::byte>& bytes) {
    const std::uintptr_t at = reinterpret_cast<std::uintptr_t>(bytes.data());
    return bytes.data() + (64 - at % 64) % 64;
  }

  void add(const LayerView& view, int slot) {
    cuda::SequenceState& state = states_[static_cast<std::size_t>(slot)];
    state = {};
    state.length = view.length;
    state.tail_start = std::max<std::int64_t>(view.length, layer_.sink_tokens);
    state.first_kept = view.first_kept;
    state.ring_head = 1;  // the ring does not start at its first slot
    state.first_page = 1;
    state.page_end = 1;
    int tail_blocks = 0;
    for (std::int32_t i = 0; i < view.page_count; ++i) {
      const PageEntry& entry = view.pages[i];
      const PageLayout& layout = layouts_[static_cast<std::size_t>(entry.kind)];
      std::byte* to = nullptr;
      if (entry.kind == PageKind::Sinks) {
        to = layer_.sinks(slot);
      } else if (entry.kind == PageKind::Tail) {
        if (tail_blocks == 0) state.tail_start = entry.first_position;
        to = layer_.tail(slot, state.ring_head, tail_blocks++);
      } else {
        layer_.table(slot)[state.page_end++] = {entry.first_position, next_page_, entry.tokens};
        to = layer_.block(PageKind::Sealed, next_page_++);
      }
      std::vector<std::byte> converted(layout.bytes);
      cuda::to_device_page(layout, entry.data, converted.data());
      std::memcpy(to, converted.data(), layout.bytes);
      poison(layout, to, entry.tokens);
    }
  }

  int count_;
  LayerLayouts layouts_;
  std::vector<std::byte> pools_[page_kinds];
  std::vector<cuda::SequenceState> states_;
  std::vector<cuda::PageSlot> tables_;
  std::vector<std::int32_t> slots_;
  std::int32_t next_page_ = 0;
  cuda::LayerView layer_{};
};

}  // namespace kvtilt::test
