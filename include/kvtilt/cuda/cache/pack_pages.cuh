// SPDX-License-Identifier: MIT
/// Quantizes full pages of tokens into an engine's own pool of pages.
#pragma once

#include <kvtilt/core/row_check.hpp>
#include <kvtilt/cuda/cache/append.cuh>
#include <kvtilt/cuda/cache/pack_pages.hpp>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/cuda/launch.cuh>
#include <kvtilt/cuda/machine.hpp>
#include <kvtilt/cuda/threads.cuh>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <limits>

namespace kvtilt::cuda {

namespace detail {

template <FitRules Rules>
__global__ void __launch_bounds__(pack_threads, resident_pack_blocks<Rules>)
    pack_pages_kernel(const __grid_constant__ PackPagesArguments arguments) {
  const DeviceThreads threads = DeviceThreads::after_previous_kernel();
  pack_pages<Rules>(threads, arguments);
}

}  // namespace detail

/// Seals full pages of tokens into an engine's own pool, for import_tables(), with the bytes that a
/// cache of the same shape, recipes and page_tokens would have sealed. Tokens that do not fill a
/// page stay with the engine: it keeps them in 16 bits and attends to them itself, and merge()
/// joins both results; EngineTables::tail_tokens says how many. May be captured.
///
/// layer   a layer of a KVCache with the engine's shape, recipes and page_tokens, which must
///         outlive the kernel: only its layouts are read, and only its error record is written
/// keys    device, [pages * page_tokens, kv_heads, key_dim], after RoPE, f32, f16 or bf16, channels
///         contiguous; rounded to fp16. Its data and strides are those of the source's first page
/// values  device, [pages * page_tokens, kv_heads, value_dim], likewise
/// source  where the other pages are: for a pool [n, 2, page_tokens, kv_heads, dim] of keys and values
///         both strides are 2 * page_tokens * kv_heads * dim, and values start half of that behind keys;
///         with heads outside tokens the views' strides alone differ
/// pages   device, [pages]: for each page of the source, the index of a page in the pool, none twice; a
///         negative index skips it, so a graph for the most pages can replay with fewer
/// pool    device, at a multiple of 64: pool_pages quantized pages, one after the other
/// Fails   InvalidArgument (shapes, rows that do not fill pages, pool), Unsupported (a head's page
///         does not fit the device's shared memory), or the launch's error; then nothing is queued.
///         NaN is stored as 0, a magnitude that is too large as the largest that the recipe holds,
///         and a page outside the pool or the source is skipped: poll() of the cache reports these, with
///         the page in place of a slot and the row in place of a position
/// Cost    one launch, one pass over the rows; does not wait
inline Status pack_pages(const LayerView& layer, const TensorView& keys, const TensorView& values,
                         const SourcePages& source, const std::int32_t* pages, std::byte* pool,
                         std::int32_t pool_pages, cudaStream_t stream = nullptr) {
  constexpr ErrorCode invalid = ErrorCode::InvalidArgument;
  if (layer.kv_heads == 0)
    return Status::error(invalid, "layer %d keeps no cache (kv_heads is 0)", layer.layer);
  LayerShape shape{layer.kv_heads, layer.key_dim, layer.value_dim};
  shape.values_in_keys = layer.values_in_keys != 0;
  KVTILT_RETURN_IF_ERROR(kvtilt::detail::check_rows(shape, keys, values, layer.layer));
  if (keys.tokens % layer.page_tokens != 0)
    return Status::error(invalid, "%lld rows do not fill pages of %d tokens",
                         static_cast<long long>(keys.tokens), layer.page_tokens);
  if (keys.tokens == 0) return {};
  PackPagesArguments arguments{{layer, {}, keys, values, {}}, source, pages, pool_pages};
  KVTILT_RETURN_IF_ERROR(detail::complete_source(arguments));
  if (pages == nullptr || pool == nullptr || pool_pages < 1 ||
      reinterpret_cast<std::uintptr_t>(pool) % page_alignment != 0)
    return Status::error(invalid,
                         "pages at %p and a pool of %d at %p: neither may be null, nor the pool "
                         "empty or off a multiple of %d",
                         static_cast<const void*>(pages), pool_pages, static_cast<void*>(pool),
                         page_alignment);
  const std::int64_t blocks = keys.tokens / layer.page_tokens * layer.kv_heads;
  if (blocks > std::numeric_limits<int>::max())
    return Status::error(invalid, "%lld rows are more than one launch can number, pack in parts",
                         static_cast<long long>(keys.tokens));
  const std::size_t shared = pack_shared_bytes(layer);
  std::size_t limit = 0;
  KVTILT_RETURN_IF_ERROR(to_status(most_shared_bytes(limit), "asking for shared memory"));
  if (shared > limit)
    return Status::error(ErrorCode::Unsupported,
                         "a page of %d tokens of %d and %d channels takes %zu bytes of shared "
                         "memory, a block of this device has %zu",
                         layer.page_tokens, layer.key_dim, layer.value_dim, shared, limit);
  arguments.append.layer.pool[static_cast<int>(PageKind::Sealed)] = pool;
  const detail::Launch<PackPagesArguments> launch =
      layer.min_max_only != 0
          ? &detail::launch<&detail::pack_pages_kernel<FitRules::MinMax>, PackPagesArguments>
          : &detail::launch<&detail::pack_pages_kernel<FitRules::All>, PackPagesArguments>;
  return to_status(launch(static_cast<int>(blocks), pack_threads, shared, stream, arguments),
                   "packing pages");
}

}  // namespace kvtilt::cuda
