// SPDX-License-Identifier: MIT
/// Decode attention on the GPU over a quantized cache: one launch that reads lengths and page tables
/// from device memory. The host plans nothing, so a captured graph replays as sequences grow.
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

/// Warps of a block; fewer on devices with little shared memory.
inline constexpr int attend_warps = 4;

/// Most query tokens in one launch: of each sequence without indptr, of all together with it. Keeps
/// item numbers within 32 bits.
inline constexpr int max_attend_queries = 1 << 16;

/// Blocks per multiprocessor that a kernel leaves registers for. With three, the accumulators and
/// queries of large heads would spill, and so would separate accumulators for each page (sums_apart);
/// two blocks of such kernels already keep MachineTraits::attend_bytes of pages in flight.
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
  DeviceThreads threads = DeviceThreads::after_previous_kernel();
  attend_block<Traits>(threads, arguments);
}

/// How a launch fills a multiprocessor. 0: Attention chooses.
struct AttendTuning {
  int blocks = 0;  ///< resident on a multiprocessor
  int stages = 0;  ///< pages that each warp's ring buffers: 2 to 4, 2 before compute capability
                   ///< 9.0; the generic kernel has no ring
};

/// Decode attention over all layers of one shape and the same recipes, on the device that was current
/// at create().
class Attention {
 public:
  /// Picks the kernel of `List` compiled for the recipe, else the list's generic one: see is_generic().
  ///
  /// Fails  as supports_attention() does, or with Unsupported, naming what the device lacks; there is
  ///        no other fallback
  template <class List = DefaultKernels>
  static Result<Attention> create(const LayerShape& shape, const Recipe& recipe,
                                  int page_tokens = 64, const AttendTuning& tuning = {}) {
    return create<List>(shape, std::vector<Recipe>{recipe}, page_tokens, tuning);
  }

  /// The same; `recipes` holds one recipe for all kv heads, or one per kv head.
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

  /// Bytes of device memory, 16-byte aligned, that any attend() needs; more are fine.
  [[nodiscard]] std::size_t workspace_bytes() const { return layout_workspace(nullptr).bytes; }

  /// Zeros a workspace's counters; call it once per workspace. Blocks that share a row count their
  /// arrivals there, so that the last one merges their parts. Each launch leaves the counters at zero:
  /// Attention and PrefillAttention objects of any layers and recipes can share a workspace that is
  /// large enough for each, prepared by any of them. Launches that may overlap need one each.
  ///
  /// Fails  InvalidArgument (null, unaligned, too small), or what CUDA says
  /// Cost   a memset of 16 KiB, queued
  [[nodiscard]] Status prepare(std::span<std::byte> workspace, cudaStream_t stream) const {
    return zero_counters(workspace, workspace_bytes(), stream);
  }

  /// Attends with the newest tokens of each sequence, which must already have been appended: its last
  /// row is the query of its newest token, the row before that of the token before, and so on. A row
  /// that sees no token gives 0 and lse = -infinity (or its head's sink logit); so do the leading rows
  /// of a sequence that has fewer tokens than rows.
  ///
  /// indptr     device, [sequences + 1]: rows indptr[i] to indptr[i + 1] - 1 belong to sequence i, as
  ///            many as it has draft tokens; without rows a sequence is skipped. Rows of no sequence
  ///            are left alone, so that a graph captured with the most rows replays with fewer. Null:
  ///            equally many rows for each
  /// queries    device, [rows, query_heads, key_dim], f32, f16 or bf16, channels contiguous
  /// out        device, [rows, query_heads, value_dim], likewise
  /// lse        device, [rows, query_heads], natural logarithm, contiguous; null: not wanted
  /// options    tree_mask holds a word per row: bit j lets it see the j-th of its sequence's rows, or
  ///            of the newest tree_tokens[sequence] tokens. A sequence with more than 64 rows ignores
  ///            the mask and is causal
  /// workspace  workspace_bytes() bytes, once prepare()d
  /// Error      against float64 on the stored values: 2e-3 of the output's norm (where values cancel:
  ///            of the weighted mean of their norms), and for lse 2e-3 of 1 + |lse|; rounding to out's
  ///            type comes on top. Each softmax weight may also be off by 2^-25 of the row's largest
  ///            weight, even if the value with that weight is 0. Long sums of 1- and 2-bit values lose
  ///            up to 2^-16 of themselves for every 128 pages that a warp adds up (page.hpp:
  ///            sums_pages_apart).
  ///            Operands are fp16: where scale * sum |q k| exceeds 32, the bound grows in proportion.
  ///            This assumes that roundings average out; where they do not (identical keys beside a
  ///            sink logit, for one), the error is up to 2^-11 * scale * sum |q k|.
  ///            Each query row is rounded to fp16 after a power of two brings its largest channel near
  ///            1, so any magnitudes from 2^-100 to 2^100 work. A row with NaN or infinity has undefined
  ///            results and does not affect other rows
  /// Fails      InvalidArgument (shapes, recipes, options, workspace, more than 2^31 units of work:
  ///            work.hpp), or the launch's error. If indptr does not ascend or leaves the tensors, the
  ///            launch writes nothing and the layer's record reports it (poll). poll() also reports
  ///            queries that see tokens which the layer's window has freed, as more than recent_tokens
  ///            of a sequence can; they attend to what is left
  /// Cost       one launch, none without sequences or queries; does not wait. Pages that no query may
  ///            see are not read, except up to two that the layer's own window left behind and append
  ///            has not yet freed
  [[nodiscard]] Status attend(const LayerView& layer, const Batch& batch,
                              const std::int32_t* indptr, const TensorView& queries,
                              const MutableTensorView& out, float* lse,
                              const DeviceAttendOptions& options, std::span<std::byte> workspace,
                              cudaStream_t stream) const;

  /// Whether the kernel reads its recipe at run time, which takes several times the instructions of a
  /// kernel compiled for it (PageTraits, HalfTraits).
  [[nodiscard]] bool is_generic() const { return generic_; }
  /// Blocks of each launch.
  [[nodiscard]] int blocks() const { return blocks_; }
  /// Stages of each warp's ring; the generic kernel has no ring.
  [[nodiscard]] int stages() const { return stages_; }

 private:
  /// Adopts the first kernel of the list that serves these recipes and fits the device, generic ones
  /// last. Does not fall back to a generic one where explicit tuning is what does not fit. `refusal`:
  /// why none was adopted.
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
    if (!fits_device) static_cast<void>(refusal = std::move(configured));  // nvcc warns without
    return fits_device;
  }

  template <class Traits>
  static std::uint32_t shared_bytes(int warps, int stages, int sequences) {
    return AttendShared::of<Traits>(warps, stages, sequences).bytes;
  }

  /// Chooses as many blocks per multiprocessor as keep MachineTraits::attend_bytes in flight, with as
  /// many warps each as fit shared memory.
  template <class Traits>
  Status configure(const AttendTuning& tuning) {
    Result<DeviceLimits> limits = DeviceLimits::current();
    if (!limits) return std::move(limits).take_status();
    const MachineTraits machine = machine_traits(limits->architecture);
    stages_ = tuning.stages > 0 ? tuning.stages : machine.attend_stages;
    item_units_ = machine.attend_item_units;
    int resident = 0;
    for (warps_ = attend_warps; stages_ >= 2 && stages_ <= machine.most_stages; warps_ /= 2) {
      int wanted = machine.attend_blocks;
      if constexpr (!Traits::generic) {  // the mean: heads' units may differ
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
  /// A block requests at least this much shared memory, so that no more blocks fit a multiprocessor
  /// than its share of blocks_. Blocks have equal work and may start while the kernel before ends; a
  /// multiprocessor that took more of them would leave another one idle.
  std::uint32_t least_shared_bytes_ = 0;
  int blocks_ = 0;
  int warps_ = 0;
  int stages_ = 0;
  int item_units_ = 0;  ///< MachineTraits::attend_item_units
};

inline Status Attention::attend(const LayerView& layer, const Batch& batch,
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
  // Unit numbers have 32 bits. The bound: each sequence has all that its table, sinks and tail hold.
  const std::int64_t units = layer.table_stride * page_units_ +
                             ceil_div(layer.sink_tokens, tile_extent) +
                             layer.ring_blocks * (layers_.page_tokens / tile_extent) + item_units_;
  const std::int64_t tiles = indptr == nullptr
                                 ? std::int64_t{batch.count} * row_tiles(arguments, 0)
                                 : batch.count + queries.tokens * arguments.gqa_ratio / item_rows;
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
