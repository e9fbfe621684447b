// SPDX-License-Identifier: MIT
/// Attention calls for tests that nvcc need not compile.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/quant/format.hpp>

#include <cstdint>
#include <vector>

namespace kvtilt::test {

/// Attention by the default kernels, or those for latents of 576 and 512 channels, to a layer in device memory; all other arrays are in host
/// memory.
struct DeviceAttendCall {
  LayerShape shape;
  std::vector<Recipe> recipes;  ///< one, or one per kv head
  cuda::LayerView layer;
  std::vector<std::int32_t> slots;
  std::vector<float> queries;  ///< [rows, query_heads, key_dim]
  int rows;
  int query_heads;
  ElementType type = ElementType::F32;  ///< of queries and output on the device
  int launches = 1;                     ///< replays of one captured graph
  float soft_cap = 0;
  std::vector<float> sink_logits = {};        ///< in units of the natural logarithm
  std::vector<std::uint64_t> tree_mask = {};  ///< [rows]
};

struct DeviceAttendResult {
  std::vector<float> out;
  std::vector<float> lse;
  bool generic = false;  ///< the generic kernel served it
};

Result<DeviceAttendResult> device_attend(const DeviceAttendCall& call);

/// A tensor in host memory and the element type that its copy on the device gets.
struct HostRows {
  const std::vector<float>* data;  ///< [rows, heads, dim]
  ElementType type;
};

/// Prefill, likewise.
struct DevicePrefillCall {
  LayerShape shape;
  std::vector<Recipe> recipes;
  cuda::LayerView layer;
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> indptr;
  HostRows queries;
  HostRows keys;
  HostRows values;
  int query_heads;
  int launches = 1;
};

Result<DeviceAttendResult> device_prefill(const DevicePrefillCall& call);

/// The status of creating attention with the default kernels; without a device, of its checks only.
Status device_attention_status(const LayerShape& shape, const std::vector<Recipe>& recipes,
                               int page_tokens);

}  // namespace kvtilt::test
