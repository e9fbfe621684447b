// SPDX-License-Identifier: MIT
/// Sequences in a device cache, and the arguments of an attention launch over them.
#pragma once

#include <kvtilt/cuda/attention/attend.cuh>

#include "support.cuh"
#include "support/device_prefill.hpp"
#include "support/some_kernels.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvtilt::test {

inline constexpr int gqa_ratio = 4;
inline constexpr LayerShape attended_layer{2, 64, 64, 0};

/// A pair of caches with some open sequences, and a batch of these.
struct Attended {
  BothCaches both;
  std::vector<BothIds> ids;
  DeviceArray<std::int32_t> slots;
  cuda::SequenceBatch batch{};
  std::vector<LayerView> shown;

  explicit Attended(const Recipe& recipe)
      : both(CacheShape{{attended_layer}}, Plan::uniform(CacheShape{{attended_layer}}, recipe),
             options()),
        slots(8) {}

  static cuda::CacheOptions options() {
    cuda::CacheOptions options;
    options.token_capacity = 8192;
    options.max_sequences = 4;
    return options;
  }
  [[nodiscard]] cuda::LayerView layer() const { return both.gpu.view(0).value(); }
  [[nodiscard]] int count() const { return static_cast<int>(ids.size()); }
  /// One sequence of 330 tokens, and its batch.
  void hold_one(Random& random) {
    ids.push_back(both.open(400));
    both.append(ids[0], random, 330);
    make_batch();
  }
  void make_batch() {
    std::vector<SequenceId> gpu;
    for (const BothIds& id : ids) gpu.push_back(id.gpu);
    batch = both.gpu.batch(gpu, slots.span()).value();
  }
  const std::vector<LayerView>& views() {  // by reference: nvcc rejects a return by value
    shown.clear();
    for (const BothIds& id : ids) shown.push_back(both.cpu.view(id.cpu, 0).value());
    return shown;
  }
};

/// The queries and outputs of a launch in device memory.
struct Outputs {
  DeviceRows<float> queries;
  DeviceRows<float> out;
  DeviceArray<float> lse;
  DeviceArray<std::byte> workspace;

  Outputs(const Rows<float>& asked, std::size_t workspace_bytes)
      : queries(asked),
        out(asked.tokens, asked.heads, attended_layer.value_dim),
        lse(static_cast<std::size_t>(asked.tokens * asked.heads)),
        workspace(workspace_bytes) {}
  [[nodiscard]] Output get() const {
    Output output(out.tokens, out.heads, out.dim);
    output.out = out.get();
    output.lse = lse.get();
    return output;
  }
};

inline cuda::Attention make_attention(const Recipe& recipe) {
  return cuda::Attention::create<SomeKernels>(attended_layer, recipe).value();
}

}  // namespace kvtilt::test
