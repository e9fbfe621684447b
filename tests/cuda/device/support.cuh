// SPDX-License-Identifier: MIT
/// A device cache and a CPU cache that get the same calls, and the comparison of their bytes.
#pragma once

#include <kvtilt/cache/kv_cache.hpp>
#include <kvtilt/cuda/cache/kv_cache.cuh>
#include <kvtilt/cuda/page/convert_page.hpp>
#include <kvtilt/quant/presets.hpp>

#include "device_array.cuh"
#include "support/cache_bytes.hpp"
#include "support/caches.hpp"
#include "support/cpu_options.hpp"
#include "support/rows.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::test {

/// Rows in device memory.
template <class T>
struct DeviceRows {
  std::int64_t tokens;
  int heads;
  int dim;
  DeviceArray<T> array;

  explicit DeviceRows(const Rows<T>& rows)
      : tokens(rows.tokens), heads(rows.heads), dim(rows.dim), array(rows.data) {}
  DeviceRows(std::int64_t tokens_, int heads_, int dim_)
      : tokens(tokens_),
        heads(heads_),
        dim(dim_),
        array(static_cast<std::size_t>(tokens_) * static_cast<std::size_t>(heads_ * dim_)) {}
  [[nodiscard]] TensorView view() const { return {array.data(), tokens, heads, dim}; }
  [[nodiscard]] MutableTensorView out() const { return {array.data(), tokens, heads, dim}; }
  [[nodiscard]] Rows<T> get() const {
    Rows<T> rows(tokens, heads, dim);
    rows.data = array.get();
    return rows;
  }
};

/// One layer of a device sequence, copied to the host and converted to the CPU's layout.
class LayerCopy {
 public:
  LayerCopy(const cuda::LayerView& layer, const cuda::detail::DeviceLayer& of, int slot) : of_(of) {
    expect_cuda(cudaDeviceSynchronize());
    state = read_device(layer.states + slot, 1)[0];
    const auto table =
        read_device(layer.table(slot), static_cast<std::size_t>(state.page_capacity));
    const std::int64_t sinks = std::min<std::int64_t>(state.length, layer.sink_tokens);
    if (sinks > 0) add(PageKind::Sinks, layer.sinks(slot), 0, static_cast<std::int32_t>(sinks));
    for (std::int32_t entry = state.first_page; entry < state.page_end; ++entry) {
      const cuda::PageSlot& page = table[static_cast<std::size_t>(entry)];
      EXPECT_TRUE(page.page >= 0 && page.page < of.pages) << page.page;
      add(PageKind::Sealed, layer.block(PageKind::Sealed, page.page), page.first_position,
          page.tokens);
    }
    int index = 0;
    for (std::int64_t position = state.tail_start; position < state.length;
         position += layer.page_tokens)
      add(PageKind::Tail, layer.tail(slot, state.ring_head, index++), position,
          static_cast<std::int32_t>(
              std::min<std::int64_t>(layer.page_tokens, state.length - position)));
    for (std::size_t i = 0; i < entries_.size(); ++i) entries_[i].data = blocks_[i].data();
  }

  [[nodiscard]] LayerView view() const {
    LayerView view;
    view.shape = of_.shape;
    for (int kind = 0; kind < page_kinds; ++kind) {
      view.heads[kind] = of_.layouts[kind].heads.data();
      view.max_page_tokens = std::max(view.max_page_tokens, of_.layouts[kind].tokens);
    }
    view.pages = entries_.data();
    view.page_count = static_cast<std::int32_t>(entries_.size());
    view.length = state.length;
    view.first_kept = state.first_kept;
    return view;
  }

  cuda::SequenceState state{};

 private:
  void add(PageKind kind, const std::byte* block, std::int64_t position, std::int32_t tokens) {
    const PageLayout& layout = of_.layout(kind);
    const std::vector<std::byte> bytes = read_device(block, layout.bytes);
    blocks_.emplace_back(layout.bytes);
    cuda::to_host_page(layout, bytes.data(), blocks_.back().data());
    entries_.push_back({nullptr, position, tokens, kind, nullptr});
  }

  const cuda::detail::DeviceLayer& of_;
  std::vector<std::vector<std::byte>> blocks_;
  std::vector<PageEntry> entries_;
};

struct BothIds {
  SequenceId gpu;
  SequenceId cpu;
};

/// A CPU cache and a device cache that get the same calls.
class BothCaches {
 public:
  BothCaches(const CacheShape& shape, const Plan& plan, const cuda::CacheOptions& options)
      : layout_(cuda::detail::make_device_layout(shape, plan, options).value()),
        shape_(shape),
        gpu(cuda::KVCache::create(shape, plan, options).value()),
        cpu(make_cache(shape, plan, cpu_options(options))) {}

  [[nodiscard]] int layers() const { return static_cast<int>(shape_.layers.size()); }
  [[nodiscard]] const LayerShape& layer(int index) const {
    return shape_.layers[static_cast<std::size_t>(index)];
  }

  BothIds open(std::int64_t tokens) {
    const BothIds id{gpu.open().value(), cpu.open().value()};
    KVTILT_EXPECT_OK(gpu.reserve(id.gpu, tokens));
    KVTILT_EXPECT_OK(cpu.reserve(id.cpu, tokens));
    return id;
  }

  /// Appends random tokens to all layers. Some channels and tokens hold zeros of both signs, or
  /// values that round to them.
  void append(const BothIds& id, Random& random, std::int64_t tokens) {
    for (int index = 0; index < layers(); ++index) {
      const LayerShape& of = layer(index);
      if (of.kv_heads == 0) continue;
      Rows<float> keys = random_rows(random, tokens, of.kv_heads, of.key_dim, 1.0f, 0.5f);
      Rows<float> values = random_rows(random, tokens, of.kv_heads, of.value_dim);
      for (Rows<float>* rows : {&keys, &values})
        for (std::size_t i = 0; i < rows->data.size(); ++i) {
          const std::size_t channel = i % static_cast<std::size_t>(rows->dim);
          const std::size_t token = i / static_cast<std::size_t>(rows->heads * rows->dim);
          if (channel == 5 || token % 16 == 3) rows->data[i] = -1e-9f;
          if (channel == 6 || token % 16 == 4) rows->data[i] = random.chance(2) ? 0.0f : -0.0f;
        }
      const DeviceRows<float> gpu_keys(keys);
      const DeviceRows<float> gpu_values(values);
      KVTILT_EXPECT_OK(
          gpu.append(id.gpu, index, gpu_keys.view(), stored_apart(of, gpu_values.view()), nullptr));
      KVTILT_EXPECT_OK(cpu.append(id.cpu, index, keys.view(), stored_apart(of, values.view())));
      expect_cuda(cudaDeviceSynchronize());
    }
  }

  /// Compares all layers, byte for byte.
  testing::AssertionResult same(const BothIds& id) const {
    for (int index = 0; index < layers(); ++index) {
      if (layer(index).kv_heads == 0) continue;
      const LayerCopy device(gpu.view(index).value(),
                             layout_.layers[static_cast<std::size_t>(index)],
                             static_cast<int>(id.gpu.slot));
      const LayerView host = cpu.view(id.cpu, index).value();
      testing::AssertionResult result = same_content(device.view(), host);
      if (!result) return result << ", in layer " << index;
      if (device.state.first_kept != host.first_kept)
        return testing::AssertionFailure() << "first_kept differs in layer " << index;
    }
    return testing::AssertionSuccess();
  }

 private:
  cuda::detail::DeviceLayout layout_;
  CacheShape shape_;

 public:
  cuda::KVCache gpu;
  KVCache cpu;
};

inline cuda::CacheOptions few_pages() {
  cuda::CacheOptions options;
  options.page_tokens = 32;
  options.recent_tokens = 40;
  options.max_sequences = 6;
  options.token_capacity = 4096;
  options.max_sequence_tokens = 2048;
  return options;
}

/// Layers 0 and 2 have a cache, layer 1 has none.
inline CacheShape two_layers(int key_dim = 64, int value_dim = 64, int window = 0) {
  CacheShape shape;
  shape.layers = {{2, key_dim, value_dim, 0}, {}, {1, 64, 96, window}};
  return shape;
}

}  // namespace kvtilt::test
