// SPDX-License-Identifier: MIT
/// Attention on the GPU over a quantized cache, in one launch that reads lengths and tables from
/// device memory: nothing is planned on the host, so a captured graph replays as sequences grow.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/attention/block.hpp>
#include <kvtilt/cuda/attention/device.cuh>
#include <kvtilt/cuda/attention/supports.hpp>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/cuda/launch.cuh>
#include <kvtilt/cuda/machine.hpp>
#include <kvtilt/cuda/threads.cuh>
#include <kvtilt/quant/format.hpp>
#include <kvtilt/quant/recipe.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt::cuda {

/// Of a block; fewer where shared memory is small.
inline constexpr int attend_warps = 4;

/// Queries of a sequence in one launch, or of all where only the device knows whose they are: what
/// numbers of items can be.
inline constexpr int max_attend_queries = 1 << 16;

/// Blocks on a multiprocessor that a kernel leaves registers for. With a third one sums and queries of
/// large heads would spill, and sums of a page apart; their pages are attend_bytes without it.
template <class Traits>
constexpr int attend_blocks() {
  if constexpr (Traits::generic)
    return Traits::blocks;
  else
    return Traits::key_dim + Traits::value_dim >= 384 || Traits::sums_apart
               ? 2
               : compiled_machine.attend_blocks;
}

template <class Traits>
__global__ void __launch_bounds__(32 * attend_warps, attend_blocks<Traits>())
    attend_kernel(const __grid_constant__ AttendArguments arguments) {
  DeviceThreads threads = DeviceThreads::in_turn();
  attend_block<Traits>(threads, arguments);
}

/// How a launch fills a multiprocessor. Zeros: what Attention finds best.
struct AttendTuning {
  int blocks = 0;  ///< on a multiprocessor
  int stages = 0;  ///< of each warp's ring of pages, 2 to 4; 2 before compute capability 9.0; the
                   ///< generic kernel has no ring
};

/// Attention over layers of one shape and the same recipes, for the device that was current at
/// create().
class Attention {
 public:
  /// By the list's kernel for the recipe, else by its generic one: see is_generic(). Fails as
  /// supports_attention() does, or with Unsupported, naming what the device lacks; nothing is ever
  /// attended to another way.
  template <class List = DefaultKernels>
  static Result<Attention> create(const LayerShape& shape, const Recipe& recipe,
                                  int page_tokens = 64, const AttendTuning& tuning = {}) {
    return create<List>(shape, std::vector<Recipe>{recipe}, page_tokens, tuning);
  }

  /// `recipes` holds one for all kv heads, or one per kv head.
  template <class List = DefaultKernels>
  static Result<Attention> create(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                  int page_tokens = 64, const AttendTuning& tuning = {}) {
    Result<ServedLayers> layers = ServedLayers::make(shape, recipes, page_tokens);
    if (!layers) return std::move(layers).take_status();
    Result<KernelKind> kind = detail::attention_kernel(List{}, *layers);
    if (!kind) return std::move(kind).take_status();
    Attention attention;
    attention.layers_ = std::move(*layers);
    Status refusal;  // by the device
    if (!attention.find(List{}, tuning, refusal)) return static_cast<Status&&>(refusal);
    return attention;
  }

  /// Bytes of device memory that any launch needs, aligned to 16; more serve, too.
  [[nodiscard]] std::size_t workspace_bytes() const { return layout_workspace(nullptr).bytes; }

  /// Zeros the counters of a workspace, once: blocks that share a row count themselves there, so that
  /// the last one merges. Each launch leaves them at zero, so that objects of all kinds, layers and
  /// recipes can share a workspace that is large enough for each, prepared by any one of them.
  /// Launches that may overlap need a workspace each.
  ///
  /// Fails  InvalidArgument (null, unaligned, too small), or what CUDA says
  /// Cost   a memset of 16 KiB, queued
  [[nodiscard]] Status prepare(std::span<std::byte> workspace, cudaStream_t stream) const {
    return zero_counters(workspace, workspace_bytes(), stream);
  }

  /// The newest tokens of each sequence ask, as many as it has rows; they have been appended. A row
  /// that sees nothing gives 0 and lse = -infinity, or its head's sink logit: so do those of positions
  /// before the start, of a sequence with fewer tokens than rows.
  ///
  /// indptr     device, [sequences + 1]: rows indptr[i] to indptr[i + 1] - 1 are sequence i's, as many
  ///            as it has drafts, none if it is not to be asked. Rows that are nobody's are left
  ///            alone, so that a graph of the most rows replays with fewer. Null: as many for each
  /// queries    device, [rows, query_heads, key_dim], f32, f16 or bf16, channels contiguous
  /// out        device, [rows, query_heads, value_dim], likewise
  /// lse        device, [rows, query_heads], natural logarithm, contiguous; null: not wanted
  /// options    tree_mask holds a word per row: bit j lets it see the j-th of its sequence's rows.
  ///            A sequence with more than 64 rows is causal
  /// workspace  workspace_bytes() bytes, once prepare()d
  /// Error      against float64 on the stored values: 2e-3 of the output's norm, or of the weighted mean
  ///            of the values' norms where they cancel, and of 1 + |lse|; out's type rounds once more.
  ///            Each weight may be off by 2^-25 of the row's largest, if that one's value is 0, too.
  ///            Long sums of 1- and 2-bit codes lose up to 2^-16 of themselves for every 128 pages that a
  ///            warp adds up (page.hpp: sums_pages_apart).
  ///            Operands are fp16: where scale * sum |q k| is more than 32 it is as many times more.
  ///            That counts on roundings that average out; where they do not, as of keys that are all
  ///            alike beside a sink logit, it is up to 2^-11 * scale * sum |q k|.
  ///            Each query row is rounded after its largest channel was brought to 1, so that any
  ///            magnitudes from 2^-100 to 2^100 do; one with NaN or infinity has undefined results,
  ///            and others do not suffer from it
  /// Fails      InvalidArgument (shapes, recipes, options, workspace, more than 2^31 units of work), or
  ///            what the launch says. An indptr that does not ascend or leaves the tensors writes
  ///            nothing, and the layer's record tells (poll)
  /// Cost       one launch, none where there are no sequences or no queries; does not wait. Pages that
  ///            no query may see are not read
  [[nodiscard]] Status attend(const LayerStorage& layer, const Batch& batch,
                              const std::int32_t* indptr, const TensorView& queries,
                              const MutableTensorView& out, float* lse,
                              const DeviceAttendOptions& options, std::span<std::byte> workspace,
                              cudaStream_t stream) const;

  /// Whether the kernel reads its recipe at run time: it takes several times the instructions of a
  /// PageTraits or HalfTraits.
  [[nodiscard]] bool is_generic() const { return generic_; }
  [[nodiscard]] int blocks() const { return blocks_; }
  [[nodiscard]] int stages() const { return stages_; }

 private:
  /// The first kernel of the list for these recipes that fits the device, generic ones last: not where
  /// tuning was asked for that another does not fit. `refusal`: why there is none.
  template <class... Traits>
  bool find(AttendKernels<Traits...>, const AttendTuning& tuning, Status& refusal) {
    if ((adopt<Traits>(false, tuning, refusal) || ...)) return true;
    const bool known = ((!Traits::generic && fits<Traits>(layers_)) || ...);
    if (known && (tuning.blocks > 0 || tuning.stages > 0)) return false;
    return (adopt<Traits>(true, tuning, refusal) || ...);
  }

  template <class Traits>
  bool adopt(bool generic, const AttendTuning& tuning, Status& refusal) {
    if (Traits::generic != generic || !fits<Traits>(layers_)) return false;
    generic_ = generic;
    launch_ = &detail::launch<&attend_kernel<Traits>, AttendArguments>;
    page_units_ = layers_.page_tokens / tile_extent;
    if constexpr (!Traits::generic) page_units_ = Traits::page_units;
    shared_bytes_ = &shared_bytes<Traits>;
    Status configured = configure<Traits>(tuning);
    const bool fits_device = configured.ok();
    if (!fits_device) static_cast<void>(refusal = std::move(configured));
    return fits_device;
  }

  template <class Traits>
  static std::uint32_t shared_bytes(int warps, int stages, int sequences) {
    return AttendShared::of<Traits>(warps, stages, sequences).bytes;
  }

  /// As many blocks on a multiprocessor as bring attend_bytes under way at a time, with as many warps as
  /// fit.
  template <class Traits>
  Status configure(const AttendTuning& tuning) {
    Result<DeviceLimits> limits = DeviceLimits::current();
    if (!limits) return std::move(limits).take_status();
    const MachineTraits machine = machine_traits(limits->architecture);
    stages_ = tuning.stages > 0 ? tuning.stages : machine.attend_stages;
    int resident = 0;
    for (warps_ = attend_warps; stages_ >= 2 && stages_ <= machine.most_stages; warps_ /= 2) {
      int wanted = machine.attend_blocks;
      if constexpr (!Traits::generic) {  // heads' units may differ
        const std::size_t units = static_cast<std::size_t>(layers_.shape.kv_heads * page_units_);
        const int ring_bytes = warps_ * static_cast<int>(layers_.page_bytes / units);
        wanted = std::clamp((machine.attend_bytes + ring_bytes / 2) / ring_bytes, 1, wanted);
      }
      if (tuning.blocks > 0) wanted = tuning.blocks;
      const int bytes =
          static_cast<int>(shared_bytes<Traits>(warps_, stages_, max_attend_sequences));
      for (int blocks = wanted; blocks > 0 && resident == 0; --blocks)
        if (bytes <= limits->shared_of_each(blocks)) resident = blocks;
      if (resident > 0 || warps_ == 1) break;
    }
    if (resident == 0 || (tuning.blocks > 0 && resident != tuning.blocks))
      return Status::error(ErrorCode::Unsupported,
                           "%d blocks of %d stages of %u bytes for each of %d warps do not fit the "
                           "%d bytes of shared memory of a multiprocessor, or more than %d stages",
                           std::max(1, tuning.blocks), stages_, Traits::stage_bytes, attend_warps,
                           limits->shared_per_multiprocessor, machine.most_stages);
    Result<int> fitting = blocks_that_fit<&attend_kernel<Traits>>(
        32 * warps_, shared_bytes<Traits>(warps_, stages_, max_attend_sequences));
    if (!fitting) return std::move(fitting).take_status();
    resident = std::min(resident, *fitting);
    blocks_ = std::min(limits->multiprocessors * resident, most_attend_blocks);
    least_shared_bytes_ = limits->shared_of_each(resident + 1) + 1;
    return {};
  }

  [[nodiscard]] LaidOutWorkspace layout_workspace(void* memory) const {
    return LaidOutWorkspace(memory, blocks_, item_rows, layers_.shape.value_dim);
  }

  ServedLayers layers_;
  bool generic_ = false;
  detail::Launch<AttendArguments> launch_ = nullptr;
  int page_units_ = 0;
  std::uint32_t (*shared_bytes_)(int warps, int stages, int sequences) = nullptr;
  /// With less, more blocks would fit a multiprocessor than it has. Blocks that start early, as others
  /// end, would then crowd on some and leave the rest idle, and all have equal stretches.
  std::uint32_t least_shared_bytes_ = 0;
  int blocks_ = 0;
  int warps_ = 0;
  int stages_ = 0;
};

inline Status Attention::attend(const LayerStorage& layer, const Batch& batch,
                                const std::int32_t* indptr, const TensorView& queries,
                                const MutableTensorView& out, float* lse,
                                const DeviceAttendOptions& options, std::span<std::byte> workspace,
                                cudaStream_t stream) const {
  const std::int64_t each = indptr == nullptr && batch.count > 0 ? queries.tokens / batch.count : 0;
  KVTILT_RETURN_IF_ERROR(check_launch(layers_, layer, batch, queries, out, options, each));
  if (indptr == nullptr && (each * batch.count != queries.tokens || each > max_attend_queries))
    return Status::error(ErrorCode::InvalidArgument,
                         "%lld queries are not as many, and at most %d, for each of %d sequences; "
                         "give indptr",
                         static_cast<long long>(queries.tokens), max_attend_queries, batch.count);
  if (indptr != nullptr && queries.tokens > max_attend_queries)
    return Status::error(ErrorCode::InvalidArgument,
                         "%lld queries of some sequences; a launch takes up to %d, or as many for "
                         "each sequence",
                         static_cast<long long>(queries.tokens), max_attend_queries);
  if (queries.tokens == 0) return {};
  KVTILT_RETURN_IF_ERROR(check_workspace(workspace, workspace_bytes()));

  AttendArguments arguments =
      make_arguments(layer, batch, {indptr, static_cast<int>(each)}, queries, out, lse, options);
  // The line of units has 32-bit numbers: no sequence has more than its table holds.
  const std::int64_t units =
      layer.table_stride * page_units_ + ceil_div(layer.sink_tokens, tile_extent) +
      layer.ring_blocks * (layers_.page_tokens / tile_extent) + compiled_machine.attend_item_units;
  const std::int64_t tiles = indptr == nullptr
                                 ? std::int64_t{batch.count} * row_tiles(arguments, 0)
                                 : batch.count + queries.tokens * arguments.ratio / item_rows;
  const std::int64_t items = tiles * layer.kv_heads;
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  if (units > most / items)
    return Status::error(ErrorCode::InvalidArgument,
                         "%lld queries over tables of %lld pages: more work than one launch can "
                         "number, ask in parts",
                         static_cast<long long>(queries.tokens),
                         static_cast<long long>(layer.table_stride));
  arguments.workspace = layout_workspace(workspace.data()).parts;
  arguments.stages = stages_;
  const std::uint32_t shared = shared_bytes_(warps_, stages_, batch.count);
  return to_status(
      launch_(blocks_, 32 * warps_, std::max(shared, least_shared_bytes_), stream, arguments),
      "attending");
}

}  // namespace kvtilt::cuda
