// SPDX-License-Identifier: MIT
/// Attention on the GPU over a quantized cache, in one launch that reads lengths and tables from
/// device memory: nothing is planned on the host, so a captured graph replays as sequences grow.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/attention/block.hpp>
#include <kvtilt/cuda/attention/default_kernels.hpp>
#include <kvtilt/cuda/attention/device.cuh>
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
#include <utility>
#include <vector>

namespace kvtilt::cuda {

inline constexpr int attend_warps = 4;

/// Queries of a sequence in one launch: what numbers of items can be.
inline constexpr int max_attend_queries = 1 << 16;

/// Blocks on a multiprocessor that a kernel leaves registers for.
template <class Traits>
constexpr int attend_blocks() {
  if constexpr (Traits::generic)
    return Traits::blocks;
  else
    return compiled_machine.attend_blocks;
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
  /// By the list's kernel for the recipe, else by its generic one: see is_generic(). Fails with
  /// Unsupported, naming what the list lacks; nothing is ever attended to another way.
  template <class List = DefaultKernels>
  static Result<Attention> create(const LayerShape& shape, const Recipe& recipe,
                                  int page_tokens = 64, const AttendTuning& tuning = {}) {
    return create<List>(shape, std::vector<Recipe>{recipe}, page_tokens, tuning);
  }

  /// `recipes` holds one for all kv heads, or one per kv head.
  template <class List = DefaultKernels>
  static Result<Attention> create(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                  int page_tokens = 64, const AttendTuning& tuning = {}) {
    Result<std::vector<Recipe>> resolved = resolve_recipes(shape, recipes, page_tokens);
    if (!resolved) return std::move(resolved).take_status();
    Attention attention;
    attention.shape_ = shape;
    attention.page_tokens_ = page_tokens;
    if (!attention.find(List{}, *resolved))
      return no_kernel(shape, *resolved, page_tokens,
                       "add their GenericTraits to AttendKernels, or a PageTraits, in MixedTraits "
                       "where heads differ");
    KVTILT_RETURN_IF_ERROR(attention.configure(tuning));
    return attention;
  }

  /// Bytes of device memory that a launch needs. They must be zeros before the first launch, and
  /// are left ready for the next one; launches that may overlap need one each.
  [[nodiscard]] std::size_t workspace_bytes(int sequences, int queries, int query_heads) const {
    return layout_workspace(nullptr, sequences, queries, query_heads).bytes;
  }

  /// The newest `queries` tokens of each sequence ask; they have been appended.
  ///
  /// queries  [sequences * queries, query_heads, key_dim], f32, f16 or bf16, any strides
  /// out      [sequences * queries, query_heads, value_dim], likewise
  /// lse      [sequences * queries, query_heads], natural logarithm, contiguous; null: not wanted
  /// Error    operands are fp16: 2e-3 of the output's norm
  /// Fails    InvalidArgument (shapes, options), or what the launch says
  /// Cost     one launch; does not wait
  [[nodiscard]] Status attend(const LayerStorage& layer, const Batch& batch,
                              const TensorView& queries, const MutableTensorView& out, float* lse,
                              const DeviceAttendOptions& options, void* workspace,
                              cudaStream_t stream) const;

  /// Whether the kernel reads its recipe at run time: it takes several times the instructions of a
  /// PageTraits or HalfTraits.
  [[nodiscard]] bool is_generic() const { return generic_; }
  [[nodiscard]] int blocks() const { return blocks_; }
  [[nodiscard]] int stages() const { return stages_; }

 private:
  using Kernel = void (*)(AttendArguments);

  template <class... Traits>
  bool find(AttendKernels<Traits...>, const std::vector<Recipe>& recipes) {
    return (adopt<Traits>(false, recipes) || ...) || (adopt<Traits>(true, recipes) || ...);
  }

  template <class Traits>
  bool adopt(bool generic, const std::vector<Recipe>& recipes) {
    if (Traits::generic != generic || !fits<Traits>(shape_, recipes, page_tokens_)) return false;
    generic_ = generic;
    kernel_ = &attend_kernel<Traits>;
    launch_ = &detail::launch<&attend_kernel<Traits>, AttendArguments>;
    unit_bytes_ = Traits::unit_bytes;
    stage_bytes_ = Traits::stage_bytes;
    shared_bytes_ = [](int stages, int sequences) {
      return AttendShared::of<Traits>(attend_warps, stages, sequences).bytes;
    };
    return true;
  }

  /// As many blocks on a multiprocessor as bring attend_bytes under way at a time.
  Status configure(const AttendTuning& tuning) {
    Result<DeviceLimits> limits = DeviceLimits::current();
    if (!limits) return std::move(limits).take_status();
    const MachineTraits machine = machine_traits(limits->architecture);
    const int ring_bytes = attend_warps * static_cast<int>(unit_bytes_);
    int wanted = machine.attend_blocks;
    if (!generic_)
      wanted = std::clamp((machine.attend_bytes + ring_bytes / 2) / ring_bytes, 1, wanted);
    if (tuning.blocks > 0) wanted = tuning.blocks;
    stages_ = tuning.stages > 0 ? tuning.stages : machine.attend_stages;
    int resident = 0;
    for (int blocks = wanted; blocks > 0 && resident == 0; --blocks) {
      int room = limits->shared_per_multiprocessor / blocks - 1024;  // the system's own per block
      if (room > limits->shared_per_block) room = limits->shared_per_block;
      if (static_cast<int>(shared_bytes_(stages_, max_attend_sequences)) <= room) resident = blocks;
    }
    if (stages_ < 2 || stages_ > machine.most_stages ||
        (tuning.blocks > 0 && resident != tuning.blocks))
      resident = 0;
    if (resident == 0)
      return Status::error(ErrorCode::Unsupported,
                           "%d stages of %u bytes for each of %d warps do not fit the %d bytes of "
                           "shared memory of this device",
                           stages_, stage_bytes_, attend_warps, limits->shared_per_block);
    Result<int> fitting =
        blocks_that_fit(kernel_, 32 * attend_warps, shared_bytes_(stages_, max_attend_sequences));
    if (!fitting) return std::move(fitting).take_status();
    blocks_ = limits->multiprocessors * (*fitting < resident ? *fitting : resident);
    return {};
  }

  [[nodiscard]] LaidOutWorkspace layout_workspace(void* memory, int sequences, int queries,
                                                  int query_heads) const {
    const std::size_t ratio = static_cast<std::size_t>(query_heads / shape_.kv_heads);
    const std::size_t items =
        static_cast<std::size_t>(sequences) * static_cast<std::size_t>(shape_.kv_heads) *
        ((ratio * static_cast<std::size_t>(queries) + item_rows - 1) / item_rows);
    return LaidOutWorkspace(memory, blocks_, item_rows, shape_.value_dim, items);
  }

  LayerShape shape_;
  int page_tokens_ = 0;
  bool generic_ = false;
  Kernel kernel_ = nullptr;
  detail::Launch<AttendArguments> launch_ = nullptr;
  std::uint32_t unit_bytes_ = 0;   ///< of a sealed unit
  std::uint32_t stage_bytes_ = 0;  ///< of a ring's stage
  std::uint32_t (*shared_bytes_)(int stages, int sequences) = nullptr;
  int blocks_ = 0;
  int stages_ = 0;
};

inline Status Attention::attend(const LayerStorage& layer, const Batch& batch,
                                const TensorView& queries, const MutableTensorView& out, float* lse,
                                const DeviceAttendOptions& options, void* workspace,
                                cudaStream_t stream) const {
  const std::int64_t each = batch.count > 0 ? queries.tokens / batch.count : 0;
  KVTILT_RETURN_IF_ERROR(
      check_launch(shape_, page_tokens_, layer, batch, queries, out, options, each, workspace));
  if (each == 0 || each * batch.count != queries.tokens || each > max_attend_queries)
    return Status::error(ErrorCode::InvalidArgument,
                         "%lld queries are not 1 to %d for each of %d sequences",
                         static_cast<long long>(queries.tokens), max_attend_queries, batch.count);

  AttendArguments arguments = make_arguments(layer, batch, queries, out, lse, options);
  arguments.workspace =
      layout_workspace(workspace, batch.count, arguments.queries, queries.heads).parts;
  arguments.stages = stages_;
  return to_status(
      launch_(blocks_, 32 * attend_warps, shared_bytes_(stages_, batch.count), stream, arguments),
      "attending");
}

}  // namespace kvtilt::cuda
