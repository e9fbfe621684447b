// SPDX-License-Identifier: MIT
/// Prefill attention on the GPU: one launch in which chunks of prompts attend to the quantized past
/// and to themselves, not yet quantized. It reads lengths and page tables from device memory, so a
/// captured graph replays.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/attention/device.cuh>
#include <kvtilt/cuda/attention/prefill_block.hpp>
#include <kvtilt/cuda/attention/supports.hpp>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/cuda/launch.cuh>
#include <kvtilt/cuda/machine.hpp>
#include <kvtilt/cuda/threads.cuh>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt::cuda {

/// Warps of a block; fewer on devices with little shared memory.
inline constexpr int most_prefill_warps = 4;

template <class Pages>
__global__ void __launch_bounds__(32 * most_prefill_warps, compiled_machine.prefill_blocks)
    attend_prefill_kernel(const __grid_constant__ PrefillArguments arguments) {
  DeviceThreads threads = DeviceThreads::after_previous_kernel();
  attend_prefill_block<PrefillTraits<Pages>>(threads, arguments);
}

/// Prefill attention over all layers of one shape and the same recipes, on the device that was current
/// at create().
class PrefillAttention {
 public:
  /// Picks the kernel of `List` compiled for the recipe, else the list's generic one: see is_generic().
  ///
  /// Fails  as supports_prefill() does, or with Unsupported, naming what the device lacks
  template <class List = DefaultKernels>
  static Result<PrefillAttention> create(const LayerShape& shape, const Recipe& recipe,
                                         int page_tokens = 64) {
    return create<List>(shape, std::vector<Recipe>{recipe}, page_tokens);
  }

  /// The same; `recipes` holds one recipe for all kv heads, or one per kv head.
  template <class List = DefaultKernels>
  static Result<PrefillAttention> create(const LayerShape& shape,
                                         const std::vector<Recipe>& recipes, int page_tokens = 64) {
    Result<ServedLayers> layers = ServedLayers::make(shape, recipes, page_tokens);
    if (!layers) return std::move(layers).take_status();
    Result<KernelKind> kind = detail::prefill_kernel(List{}, *layers);
    if (!kind) return std::move(kind).take_status();
    PrefillAttention attention;
    attention.layers_ = std::move(*layers);
    attention.generic_ = *kind == KernelKind::Generic;
    attention.find(List{});
    KVTILT_RETURN_IF_ERROR(attention.configure());
    return attention;
  }

  /// Bytes of device memory, 16-byte aligned, that any attend_prefill() needs: two unfinished row tiles
  /// (block_rows() rows) of each block, in float32. More are fine.
  [[nodiscard]] std::size_t workspace_bytes() const { return layout_workspace(nullptr).bytes; }

  /// Zeros a workspace's counters, once, as Attention::prepare() does; the two may share a workspace.
  [[nodiscard]] Status prepare(std::span<std::byte> workspace, cudaStream_t stream) const {
    return zero_counters(workspace, workspace_bytes(), stream);
  }

  /// Attends with the next tokens of each sequence, its chunk: to the tokens that the layer holds, and
  /// causally to the chunk. Call it before the chunk is appended. The cache's bytes do not depend on
  /// how a prompt is cut into chunks; these outputs do.
  ///
  /// indptr     device, [sequences + 1]: rows indptr[i] to indptr[i + 1] - 1 are sequence i's chunk.
  ///            Null: equally many for each
  /// queries    device, [rows, query_heads, key_dim], f32, f16 or bf16, channels contiguous
  /// keys       device, [rows, kv_heads, key_dim], after RoPE, likewise; rounded to fp16, as append does
  /// values     device, [rows, kv_heads, value_dim], likewise
  /// out        device, [rows, query_heads, value_dim], likewise
  /// lse        device, [rows, query_heads], natural logarithm, contiguous; null: not wanted
  /// options    tree_mask holds a word per row: bit j lets it see the j-th token of its chunk, or of the
  ///            tree of tree_tokens[sequence] tokens that the chunk completes. A chunk of more than 64
  ///            tokens ignores the mask and is causal
  /// workspace  workspace_bytes() bytes, once prepare()d
  /// Error      as for Attention::attend()
  /// Fails      InvalidArgument (shapes, recipes, options, workspace, too many rows), Unsupported (more
  ///            query heads per kv head than block_rows(), or than 2^16 in all), or the launch's error.
  ///            Elements that append would change (NaN, too large) give undefined outputs. If indptr
  ///            does not ascend or leaves the tensors, or chunks and pasts are 2^31 or more pairs of a
  ///            row tile (block_rows() rows) and 64 tokens, the launch writes nothing and the layer's
  ///            record reports it (poll)
  /// Cost       one launch, none without rows; does not wait
  [[nodiscard]] Status attend_prefill(const LayerView& layer, const Batch& batch,
                                      const std::int32_t* indptr, const TensorView& queries,
                                      const TensorView& keys, const TensorView& values,
                                      const MutableTensorView& out, float* lse,
                                      const DeviceAttendOptions& options,
                                      std::span<std::byte> workspace, cudaStream_t stream) const;

  /// Whether pages are decoded with recipes read at run time, in twice the instructions: by a generic
  /// kernel, or where decodes_known_pages() does not hold (some dimensions that 64 does not divide).
  [[nodiscard]] bool is_generic() const { return generic_; }
  [[nodiscard]] int blocks() const { return blocks_; }
  /// Query rows (tokens times query heads per kv head) of a block: they share the pages it decodes.
  [[nodiscard]] int block_rows() const { return warps_ * warp_rows_; }

 private:
  template <class... Pages>
  void find(AttendKernels<Pages...>) {
    static_cast<void>((adopt<Pages>(false) || ...) || (adopt<Pages>(true) || ...));
  }

  template <class Pages>
  bool adopt(bool generic) {
    if (Pages::generic != generic || !fits<Pages>(layers_)) return false;
    if constexpr (!prefills(Pages{})) {
      return false;
    } else {
      launch_ = &detail::launch<&attend_prefill_kernel<Pages>, PrefillArguments>;
      warp_rows_ = PrefillTraits<Pages>::warp_rows;
      blocks_that_fit_ = &blocks_that_fit<&attend_prefill_kernel<Pages>>;
      shared_bytes_ = [](int warps, int sequences, bool copied_pages) {
        return PrefillShared::of<PrefillTraits<Pages>>(warps, sequences, copied_pages).bytes;
      };
      return true;
    }
  }

  Status configure() {
    Result<DeviceLimits> limits = DeviceLimits::current();
    if (!limits) return std::move(limits).take_status();
    most_shared_bytes_ = static_cast<std::uint32_t>(limits->shared_per_block);
    constexpr int some = 256;  // sequences to choose warps for; attend_prefill() checks any others
    for (warps_ = most_prefill_warps; warps_ > 0; warps_ /= 2)
      if (shared_bytes_(warps_, some, false) <= most_shared_bytes_) break;
    if (warps_ == 0)
      return Status::error(
          ErrorCode::Unsupported,
          "64 tokens of %d and %d channels do not fit the %d bytes of shared memory "
          "of this device twice",
          layers_.shape.key_dim, layers_.shape.value_dim, limits->shared_per_block);
    Result<int> fitting = blocks_that_fit_(32 * warps_, shared_bytes_(warps_, some, false));
    if (!fitting) return std::move(fitting).take_status();
    if (machine_traits(limits->architecture).prefill_copies)
      most_copying_bytes_ = static_cast<std::uint32_t>(limits->shared_of_each(*fitting));
    blocks_ = std::min(limits->multiprocessors * *fitting, most_attend_blocks);
    return {};
  }

  [[nodiscard]] LaidOutWorkspace layout_workspace(void* memory) const {
    return LaidOutWorkspace(memory, blocks_, block_rows(), layers_.shape.value_dim);
  }

  ServedLayers layers_;
  bool generic_ = false;
  Result<int> (*blocks_that_fit_)(int threads, std::size_t shared_bytes) = nullptr;
  detail::Launch<PrefillArguments> launch_ = nullptr;
  int warps_ = 0;
  int warp_rows_ = 0;
  std::uint32_t (*shared_bytes_)(int warps, int sequences, bool copied_pages) = nullptr;
  std::uint32_t most_shared_bytes_ = 0;
  std::uint32_t most_copying_bytes_ = 0;  ///< of a block that copies pages: as many blocks fit
  int blocks_ = 0;
};

inline Status PrefillAttention::attend_prefill(
    const LayerView& layer, const Batch& batch, const std::int32_t* indptr,
    const TensorView& queries, const TensorView& keys, const TensorView& values,
    const MutableTensorView& out, float* lse, const DeviceAttendOptions& options,
    std::span<std::byte> workspace, cudaStream_t stream) const {
  constexpr ErrorCode invalid = ErrorCode::InvalidArgument;
  const std::int64_t each = indptr == nullptr && batch.count > 0 ? queries.tokens / batch.count : 0;
  KVTILT_RETURN_IF_ERROR(check_launch(layers_, layer, batch, queries, out, options, each));
  KVTILT_RETURN_IF_ERROR(
      kvtilt::detail::check_rows(layers_.shape, keys, values, kvtilt::unnumbered_layer));
  if (keys.tokens != queries.tokens || (indptr == nullptr && each * batch.count != keys.tokens))
    return Status::error(
        invalid,
        "%lld queries for %lld keys of %d sequences; expected as many, and without "
        "indptr as many for each sequence",
        static_cast<long long>(queries.tokens), static_cast<long long>(keys.tokens), batch.count);
  const int gqa_ratio = queries.heads / layers_.shape.kv_heads;
  if (gqa_ratio > block_rows())
    return Status::error(ErrorCode::Unsupported,
                         "%d query heads for a kv head; a block holds %d rows", gqa_ratio,
                         block_rows());
  constexpr int most_heads = 1 << 16;  // QueryRow
  if (queries.heads > most_heads)
    return Status::error(ErrorCode::Unsupported, "%d query heads; a launch numbers up to %d",
                         queries.heads, most_heads);
  if (queries.tokens == 0) return {};
  const std::int64_t tiles = batch.count + queries.tokens / tile_tokens(block_rows(), gqa_ratio);
  constexpr std::int64_t most = 1 << 16;
  const bool copies = shared_bytes_(warps_, batch.count, true) <= most_copying_bytes_;
  const std::uint32_t bytes = tiles > most ? ~0u : shared_bytes_(warps_, batch.count, copies);
  if (bytes > most_shared_bytes_)
    return Status::error(
        invalid,
        "%lld rows of %d sequences are up to %lld row tiles of %d tokens: too many "
        "for one launch, attend to shorter chunks",
        static_cast<long long>(queries.tokens), batch.count, static_cast<long long>(tiles),
        tile_tokens(block_rows(), gqa_ratio));
  KVTILT_RETURN_IF_ERROR(check_workspace(workspace, workspace_bytes()));
  PrefillArguments arguments{};
  arguments.attend =
      make_arguments(layer, batch, {indptr, static_cast<int>(each)}, queries, out, lse, options);
  arguments.attend.workspace = layout_workspace(workspace.data()).parts;
  arguments.keys = keys;
  arguments.values = values;
  arguments.copied_pages = copies;
  return to_status(launch_(blocks_, 32 * warps_, bytes, stream, arguments), "attending to a chunk");
}

}  // namespace kvtilt::cuda
