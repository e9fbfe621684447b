// SPDX-License-Identifier: MIT
/// Converts page tables: an engine's own pages for attention, a cache's pages for an engine's
/// kernels.
#pragma once

#include <kvtilt/cuda/cache/page_tables.hpp>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/cuda/launch.cuh>
#include <kvtilt/cuda/threads.cuh>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt::cuda {

namespace detail {

template <int threads>
__global__ void __launch_bounds__(threads)
    import_tables_kernel(const __grid_constant__ LayerView view, std::int32_t* slots,
                         EngineTables tables, std::int32_t pool_pages) {
  import_tables_body(DeviceThreads::after_previous_kernel(), view, slots, tables, pool_pages);
}
template <int threads>
__global__ void __launch_bounds__(threads)
    export_tables_kernel(const __grid_constant__ LayerView view, Batch batch, ExportedTables out) {
  export_tables_body(DeviceThreads::after_previous_kernel(), view, batch, out);
}

}  // namespace detail

/// Makes an engine's own pages available to attention once the kernel that this queues has run. The
/// kernel reads the engine's tables on the device: queue it again, or capture it, for each step.
///
/// layer       as for imported_layer()
/// pool        device, at a multiple of 64: pool_pages quantized pages, one after the other
/// most_pages  the most pages of a sequence
/// workspace   device, at a multiple of 64: import_workspace_bytes(tables.sequences, most_pages)
/// Fails       InvalidArgument, before anything is queued. A sequence whose table is invalid
///             (lengths, pages outside the pool, more than most_pages) is left empty, and poll() of
///             the cache that `layer` belongs to reports it
inline Result<ImportedLayer> import_tables(const LayerView& layer, const EngineTables& tables,
                                           std::byte* pool, std::int32_t pool_pages, int most_pages,
                                           std::span<std::byte> workspace,
                                           cudaStream_t stream = nullptr) {
  const bool csr = tables.indptr != nullptr && tables.last_page_tokens != nullptr;
  if (tables.sequences < 1 || tables.indices == nullptr || tables.is_dense() == csr ||
      tables.stride < 0)
    return Status::error(ErrorCode::InvalidArgument,
                         "%d sequences with indices at %p: give lengths, or indptr and "
                         "last_page_tokens",
                         tables.sequences, static_cast<const void*>(tables.indices));
  if (most_pages < 1 || pool_pages < 1)
    return Status::error(ErrorCode::InvalidArgument,
                         "a pool of %d pages, and up to %d of a sequence: both must be 1 at least",
                         pool_pages, most_pages);
  const std::size_t needed = import_workspace_bytes(tables.sequences, most_pages);
  if (workspace.size() < needed)
    return Status::error(ErrorCode::InvalidArgument,
                         "a workspace of %zu bytes; %d sequences of %d pages need %zu",
                         workspace.size(), tables.sequences, most_pages, needed);
  const auto misplaced = [](const std::byte* memory) {
    return memory == nullptr || reinterpret_cast<std::uintptr_t>(memory) % page_alignment != 0;
  };
  if (misplaced(pool) || misplaced(workspace.data()))
    return Status::error(
        ErrorCode::InvalidArgument,
        "a pool at %p and a workspace at %p: neither may be null, and both must be "
        "at multiples of %d",
        static_cast<void*>(pool), static_cast<void*>(workspace.data()), page_alignment);
  ImportedLayer result =
      imported_layer(layer, pool, tables.sequences, most_pages, workspace.data());
  KVTILT_RETURN_IF_ERROR(
      to_status(detail::launch<&detail::import_tables_kernel<128>>(
                    std::min(tables.sequences, 1024), 128, 0, stream, result.view,
                    const_cast<std::int32_t*>(result.batch.slots), tables, pool_pages),
                "importing page tables"));
  return result;
}

/// Writes the sealed pages of a batch as FlashInfer's arrays. Sinks and tails are not among them:
/// let Attention attend to those, one launch per sequence, as a launch has one
/// options.first_position, and merge() the results.
///
/// CAUTION: a sequence comes out EMPTY, without any of its pages, and attention over it is wrong,
/// if a page before its last one is not full (a truncation cut into it) or if `indices` has no room
/// for its pages. The call returns Ok all the same: only KVCache::poll() names such a sequence.
///
/// out    device memory
/// Fails  InvalidArgument, before anything is queued
inline Status export_tables(const LayerView& layer, const Batch& batch, const ExportedTables& out,
                            cudaStream_t stream = nullptr) {
  if (batch.count < 1 || batch.slots == nullptr || out.indptr == nullptr ||
      out.last_page_tokens == nullptr || out.indices == nullptr || out.capacity < 0)
    return Status::error(ErrorCode::InvalidArgument,
                         "cannot export %d sequences into null arrays or %d indices", batch.count,
                         out.capacity);
  return to_status(
      detail::launch<&detail::export_tables_kernel<256>>(1, 256, 0, stream, layer, batch, out),
      "exporting page tables");
}

}  // namespace kvtilt::cuda
