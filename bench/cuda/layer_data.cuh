// SPDX-License-Identifier: MIT
/// Layers of random contents in device memory, for benches of attention.
#pragma once

#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/half2.hpp>
#include <kvtilt/quant/recipe.hpp>

#include "probe_support.cuh"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::bench {

/// Throws if a call failed; Report::row catches it.
inline void check(const Status& status) {
  if (!status.ok()) throw std::runtime_error(std::string(status.message()));
}
template <class T>
T check(Result<T> result) {
  check(result.status());
  return std::move(*result);
}

__device__ inline std::uint32_t hash(std::uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  return static_cast<std::uint32_t>(x >> 32);
}
__device__ inline float uniform(std::uint64_t x) { return hash(x) * 0x1p-32f; }

/// Two fp16 numbers with an approximately normal distribution.
__device__ inline std::uint32_t normal_pair(std::uint64_t x) {
  const float low = uniform(4 * x) + uniform(4 * x + 1) - 1.0f;
  const float high = uniform(4 * x + 2) + uniform(4 * x + 3) - 1.0f;
  return cuda::pack_halves(2.4f * low, 2.4f * high);
}

/// Fills words [first, first + count) of every block: kind 0 any bits, 1 normals, 2 scales, 3
/// minima.
static __global__ void fill_words(std::byte* blocks, std::int64_t block_bytes, std::int64_t count,
                                  std::uint32_t first, std::uint32_t words, int kind,
                                  float magnitude, std::uint64_t seed) {
  const std::int64_t total = count * words;
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < total;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    const std::uint64_t key = seed + static_cast<std::uint64_t>(i);
    std::uint32_t word = hash(key);
    if (kind == 1) word = normal_pair(key);
    if (kind == 2)
      word =
          cuda::pack_halves(magnitude * (0.5f + uniform(key)), magnitude * (0.5f + uniform(~key)));
    if (kind == 3)
      word = cuda::pack_halves(-magnitude * (0.5f + uniform(key)),
                               -magnitude * (0.5f + uniform(~key)));
    reinterpret_cast<std::uint32_t*>(blocks + i / words * block_bytes)[first + i % words] = word;
  }
}

/// One layer of random contents, with its pages in random order in the pool. It has several sets of
/// sequences with the same lengths: enough that launches over them in turn do not hit in the L2.
class LayerData {
 public:
  /// recipes      one for all kv heads, or one for each
  /// other_bytes  further bytes that a launch reads and writes and that must miss the L2 as well
  LayerData(const LayerShape& shape, const std::vector<Recipe>& recipes,
            const std::vector<std::int64_t>& lengths, std::size_t other_bytes = 0)
      : sequences_(static_cast<int>(lengths.size())) {
    constexpr TokenPlacement placement{64, 4, 128};
    std::vector<Recipe> resolved;
    for (const Recipe& recipe : recipes)
      resolved.push_back(check(resolve_recipe(recipe, shape, placement.page_tokens)));
    const LayerLayouts layouts =
        make_layer_layouts(shape, resolved, placement.page_tokens, placement.sink_tokens);
    layer_ = cuda::describe_layer(shape, placement, layouts);
    std::vector<std::int64_t> pages;
    for (const std::int64_t length : lengths) {
      pages.push_back(placement.seals(placement.sink_tokens, length));
      const std::int64_t halves = length - pages.back() * placement.page_tokens;
      bytes_ += static_cast<std::size_t>(pages.back() * layer_.block_bytes[1]) +
                static_cast<std::size_t>(halves) * shape.elements_per_token() * 2;
    }
    sets_ = static_cast<int>(rotated_bytes() / (bytes_ + other_bytes)) + 1;
    const std::int64_t all = std::int64_t{sets_} * sequences_;
    const std::int64_t total = sets_ * std::accumulate(pages.begin(), pages.end(), std::int64_t{0});
    layer_.table_stride = *std::max_element(pages.begin(), pages.end()) + 1;
    const std::int64_t counts[page_kinds] = {all, total, all * layer_.ring_blocks};
    std::size_t needed = 0;
    for (int kind = 0; kind < page_kinds; ++kind)
      needed += static_cast<std::size_t>(counts[kind] * layer_.block_bytes[kind]);
    std::size_t left = 0, device = 0;
    KVTILT_CHECK(cudaMemGetInfo(&left, &device));
    if (needed > left / 20 * 19)
      throw LeftOut(std::to_string(needed >> 20) + " MiB of pages, " + std::to_string(left >> 20) +
                    " MiB are free");
    std::uint64_t seed = 77;
    for (int kind = 0; kind < page_kinds; ++kind) {
      const PageLayout& layout = layouts[static_cast<std::size_t>(kind)];
      pools_[kind] = std::make_unique<DeviceArray<std::byte>>(
          std::max<std::size_t>(64, static_cast<std::size_t>(counts[kind]) * layout.bytes));
      layer_.pool[kind] = pools_[kind]->data();
      heads_[kind] = std::make_unique<DeviceArray<HeadLayout>>(layout.heads);
      layer_.heads[kind] = heads_[kind]->data();
      for (const HeadLayout& head : layout.heads)
        for (const TensorLayout* tensor : {&head.key, &head.value})
          fill(kind, counts[kind], head, *tensor, seed += 0x1234567);
    }

    std::vector<std::int32_t> order(static_cast<std::size_t>(total));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
    std::vector<cuda::SequenceState> states;
    std::vector<cuda::PageSlot> tables(static_cast<std::size_t>(all * layer_.table_stride));
    std::vector<std::int32_t> slots(static_cast<std::size_t>(all));
    std::iota(slots.begin(), slots.end(), 0);
    std::size_t next = 0;
    for (std::size_t slot = 0; slot < slots.size(); ++slot) {
      const std::size_t i = slot % lengths.size();
      cuda::SequenceState state{};
      state.length = lengths[i];
      state.tail_start = placement.sink_tokens + pages[i] * placement.page_tokens;
      state.page_end = static_cast<std::int32_t>(pages[i]);
      states.push_back(state);
      cuda::PageSlot* table = &tables[slot * static_cast<std::size_t>(layer_.table_stride)];
      for (std::int64_t page = 0; page < pages[i]; ++page)
        table[page] = {placement.sink_tokens + page * placement.page_tokens, order[next++],
                       placement.page_tokens};
    }
    states_ = std::make_unique<DeviceArray<cuda::SequenceState>>(states);
    tables_ = std::make_unique<DeviceArray<cuda::PageSlot>>(tables);
    slots_ = std::make_unique<DeviceArray<std::int32_t>>(slots);
    layer_.states = states_->data();
    layer_.tables = tables_->data();
    finish();
  }

  [[nodiscard]] const cuda::LayerView& layer() const { return layer_; }
  [[nodiscard]] int sets() const { return sets_; }
  /// The batch for launch `i`: launches use the sets in turn.
  [[nodiscard]] cuda::Batch batch(int i) const {
    return {slots_->data() + i % sets_ * sequences_, sequences_};
  }
  /// Bytes of one set's tokens, metadata included.
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  void fill(int kind, std::int64_t blocks, const HeadLayout& head, const TensorLayout& tensor,
            std::uint64_t seed) {
    const auto words = [&](std::size_t offset, std::size_t bytes, int what, float magnitude) {
      if (blocks > 0 && bytes > 0)
        fill_words<<<2048, 256>>>(layer_.pool[kind], layer_.block_bytes[kind], blocks,
                                  static_cast<std::uint32_t>((head.offset + offset) / 4),
                                  static_cast<std::uint32_t>(bytes / 4), what, magnitude,
                                  seed + offset);
    };
    const int bits = tensor.format.bits;
    const float range = 4.0f;
    words(tensor.codes, code_bytes(tensor.matrix, bits), bits == half_bits ? 1 : 0, 0);
    for (int band = 0; band < tensor.bands(); ++band) {
      const std::size_t half = static_cast<std::size_t>(tensor.pitch()) * 2;
      const std::size_t at = tensor.metadata + static_cast<std::size_t>(band) * 2 * half;
      words(at, half, 2, range / static_cast<float>(max_code(bits)));
      words(at + half, half, 3, range / 2);
    }
  }

  int sequences_;
  int sets_ = 1;
  std::size_t bytes_ = 0;
  cuda::LayerView layer_{};
  std::unique_ptr<DeviceArray<std::byte>> pools_[page_kinds];
  std::unique_ptr<DeviceArray<HeadLayout>> heads_[page_kinds];
  std::unique_ptr<DeviceArray<cuda::SequenceState>> states_;
  std::unique_ptr<DeviceArray<cuda::PageSlot>> tables_;
  std::unique_ptr<DeviceArray<std::int32_t>> slots_;
};

}  // namespace kvtilt::bench
