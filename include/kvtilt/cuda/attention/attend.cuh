// SPDX-License-Identifier: MIT
/// Attention on the GPU over a quantized cache, in one launch that reads lengths and tables from
/// device memory: nothing is planned on the host, so a captured graph replays as sequences grow.
#pragma once

#include <kvtilt/attention/options.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/attention/block.hpp>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/cuda/threads.cuh>
#include <kvtilt/quant/format.hpp>
#include <kvtilt/quant/recipe.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvtilt::cuda {

inline constexpr int attend_warps = 4;

/// Sequences in one launch: their starts are in shared memory.
inline constexpr int max_attend_sequences = 1024;

/// Blocks on a multiprocessor that a kernel leaves registers for.
template <class Traits>
constexpr int attend_blocks() {
  if constexpr (Traits::generic)
    return Traits::blocks;
  else
    return 3;
}

template <class Traits>
__global__ void __launch_bounds__(32 * attend_warps, attend_blocks<Traits>())
    attend_kernel(const __grid_constant__ AttendArguments arguments) {
  DeviceThreads threads;
  attend_block<Traits>(threads, arguments);
}

/// The kernels a build carries: a PageTraits or HalfTraits for each pair that should be as fast as
/// can be, a GenericTraits for all other recipes of its head dimensions. One costs 1 to 2 s of nvcc
/// and 150 KB of object file, code and PTX, per architecture.
template <class... Traits>
struct AttendKernels {};

/// Any recipe of head dimensions 64 and 128; fast ones at 128, in pages of 64 tokens with default
/// groups.
using DefaultAttendKernels =
    AttendKernels<HalfTraits<128>, PageTraits<8, 8, 128>, PageTraits<8, 4, 128>,
                  PageTraits<4, 4, 128>, PageTraits<4, 2, 128>, PageTraits<2, 2, 128>,
                  GenericTraits<64>, GenericTraits<128>>;

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
  template <class List = DefaultAttendKernels>
  static Result<Attention> create(const LayerShape& shape, const Recipe& recipe,
                                  int page_tokens = 64, const AttendTuning& tuning = {}) {
    return create<List>(shape, std::vector<Recipe>{recipe}, page_tokens, tuning);
  }

  /// `recipes` holds one for all kv heads, or one per kv head.
  template <class List = DefaultAttendKernels>
  static Result<Attention> create(const LayerShape& shape, const std::vector<Recipe>& recipes,
                                  int page_tokens = 64, const AttendTuning& tuning = {}) {
    if (recipes.size() != 1 && recipes.size() != static_cast<std::size_t>(shape.kv_heads))
      return Status::error(ErrorCode::InvalidArgument,
                           "%zu recipes for %d kv heads; give one, or one per head", recipes.size(),
                           shape.kv_heads);
    std::vector<Recipe> resolved;
    bool words_filled = true;
    for (const Recipe& recipe : recipes) {
      Result<Recipe> one = resolve_recipe(recipe, shape, page_tokens);
      if (!one) return std::move(one).take_status();
      resolved.push_back(*one);
      words_filled = words_filled && supports_order({page_tokens, shape.key_dim}, one->key.bits) &&
                     supports_order({shape.value_dim, page_tokens}, one->value.bits);
    }
    Attention attention;
    attention.shape_ = shape;
    attention.page_tokens_ = page_tokens;
    if (!attention.find(List{}, resolved))
      return Status::error(
          ErrorCode::Unsupported,
          "no attention kernel for %s%s with head dimensions %d and %d in pages of %d tokens: %s",
          to_string(recipes[0]).c_str(), recipes.size() > 1 ? " and other heads' recipes" : "",
          shape.key_dim, shape.value_dim, page_tokens,
          !is_page_size(page_tokens) ? "pages hold 32, 64 or 128 tokens"
          : !words_filled
              ? "codes of such pages do not fill the words of the GPU's order; larger pages, head "
                "dimensions that are multiples of 32, or 4, 8 or 16 bits do"
              : "add their GenericTraits to AttendKernels, or a PageTraits (one recipe for all "
                "heads, keys per channel, values per token, 1, 2, 4, 8 or 16 bits)");
    KVTILT_RETURN_IF_ERROR(attention.configure(tuning));
    return attention;
  }

  /// Bytes of device memory that a launch needs. They must be zeros before the first launch, and
  /// are left ready for the next one; launches that may overlap need one each.
  [[nodiscard]] std::size_t workspace_bytes(int sequences, int queries, int query_heads) const {
    return layout_workspace(nullptr, sequences, queries, query_heads).second;
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
    if (Traits::generic != generic || Traits::key_dim != shape_.key_dim ||
        Traits::value_dim != shape_.value_dim || !is_page_size(page_tokens_))
      return false;
    for (const Recipe& recipe : recipes)
      if (!fits<Traits>(recipe)) return false;
    generic_ = generic;
    kernel_ = &attend_kernel<Traits>;
    stage_bytes_ = Traits::stage_bytes;
    shared_bytes_ = [](int stages, int sequences) {
      return AttendShared::of<Traits>(attend_warps, stages, sequences).bytes;
    };
    return true;
  }

  template <class Traits>
  [[nodiscard]] bool fits(const Recipe& recipe) const {
    if constexpr (Traits::generic) {
      return Traits::supports(recipe, page_tokens_);
    } else if (Traits::page_tokens != page_tokens_ || Traits::key_bits != recipe.key.bits ||
               Traits::value_bits != recipe.value.bits) {
      return false;
    } else if constexpr (Traits::key_bits == half_bits) {
      return true;
    } else {
      return recipe.key.granularity == Granularity::PerChannel &&
             recipe.value.granularity == Granularity::PerToken &&
             recipe.key.group == Traits::key_group && recipe.value.group == Traits::value_group;
    }
  }

  /// Two stages a warp, and as many blocks on a multiprocessor as bring about 60 KB under way at a
  /// time: measured on an H200, more of either costs up to 5 % (bench/cuda/attend_bench.cu, rows
  /// tuning).
  Status configure(const AttendTuning& tuning) {
    int device = 0;
    int multiprocessors = 0;
    int per_block = 0;
    int per_multiprocessor = 0;
    int major = 0;
    constexpr const char* preparing = "preparing attention";
    KVTILT_RETURN_IF_ERROR(to_status(cudaGetDevice(&device), preparing));
    const auto attribute = [&](cudaDeviceAttr name, int& value) {
      return to_status(cudaDeviceGetAttribute(&value, name, device), preparing);
    };
    KVTILT_RETURN_IF_ERROR(attribute(cudaDevAttrMultiProcessorCount, multiprocessors));
    KVTILT_RETURN_IF_ERROR(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, per_block));
    KVTILT_RETURN_IF_ERROR(
        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, per_multiprocessor));
    KVTILT_RETURN_IF_ERROR(attribute(cudaDevAttrComputeCapabilityMajor, major));
    const int most_stages = major >= 9 ? 4 : 2;  // cp.async waits count stages: see wait_stage()
    const int ring_bytes = attend_warps * static_cast<int>(stage_bytes_);
    constexpr int wanted_bytes = 60 << 10;
    int wanted = (wanted_bytes + ring_bytes / 2) / ring_bytes;
    wanted = tuning.blocks > 0 ? tuning.blocks : wanted < 1 ? 1 : wanted > 3 ? 3 : wanted;
    if (generic_) wanted = tuning.blocks > 0 ? tuning.blocks : 3;
    stages_ = tuning.stages > 0 ? tuning.stages : 2;
    int resident = 0;
    for (int blocks = wanted; blocks > 0 && resident == 0; --blocks) {
      int room = per_multiprocessor / blocks - 1024;  // the system's own per block
      if (room > per_block) room = per_block;
      if (static_cast<int>(shared_bytes_(stages_, max_attend_sequences)) <= room) resident = blocks;
    }
    if (stages_ < 2 || stages_ > most_stages || (tuning.blocks > 0 && resident != tuning.blocks))
      resident = 0;
    if (resident == 0)
      return Status::error(ErrorCode::Unsupported,
                           "%d pages of %u bytes for each of %d warps do not fit the %d bytes of "
                           "shared memory of this device",
                           stages_, stage_bytes_, attend_warps, per_block);
    KVTILT_RETURN_IF_ERROR(to_status(
        cudaFuncSetAttribute(kernel_, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes_(stages_, max_attend_sequences))),
        preparing));
    int fitting = 0;
    KVTILT_RETURN_IF_ERROR(to_status(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fitting, kernel_, 32 * attend_warps,
                                                      shared_bytes_(stages_, max_attend_sequences)),
        preparing));
    blocks_ = multiprocessors * (fitting < resident ? fitting : resident);
    return {};
  }

  [[nodiscard]] std::pair<AttendWorkspace, std::size_t> layout_workspace(void* memory,
                                                                         int sequences, int queries,
                                                                         int query_heads) const {
    const std::size_t rows = 2 * static_cast<std::size_t>(blocks_) * item_rows;
    const std::size_t ratio = static_cast<std::size_t>(query_heads / shape_.kv_heads);
    const std::size_t items =
        static_cast<std::size_t>(sequences) * static_cast<std::size_t>(shape_.kv_heads) *
        ((ratio * static_cast<std::size_t>(queries) + item_rows - 1) / item_rows);
    float* floats = static_cast<float*>(memory);
    AttendWorkspace workspace;
    const std::size_t outputs = rows * static_cast<std::size_t>(shape_.value_dim);
    if (memory != nullptr) {
      workspace.partial_outputs = floats;
      workspace.partial_states = floats + outputs;
      workspace.arrivals = reinterpret_cast<std::uint32_t*>(floats + outputs + 2 * rows);
    }
    return {workspace, (outputs + 2 * rows + items) * 4};
  }

  LayerShape shape_;
  int page_tokens_ = 0;
  bool generic_ = false;
  Kernel kernel_ = nullptr;
  std::uint32_t stage_bytes_ = 0;
  std::uint32_t (*shared_bytes_)(int stages, int sequences) = nullptr;
  int blocks_ = 0;
  int stages_ = 0;
};

inline Status Attention::attend(const LayerStorage& layer, const Batch& batch,
                                const TensorView& queries, const MutableTensorView& out, float* lse,
                                const DeviceAttendOptions& options, void* workspace,
                                cudaStream_t stream) const {
  constexpr ErrorCode invalid = ErrorCode::InvalidArgument;
  if (batch.count < 1 || batch.count > max_attend_sequences)
    return Status::error(invalid, "a launch attends to 1 to %d sequences, not %d",
                         max_attend_sequences, batch.count);
  if (layer.kv_heads != shape_.kv_heads || layer.key_dim != shape_.key_dim ||
      layer.value_dim != shape_.value_dim || layer.page_tokens != page_tokens_)
    return Status::error(invalid,
                         "the layer has %d kv heads of %d and %d in pages of %d; this is for %d kv "
                         "heads of %d and %d in pages of %d",
                         layer.kv_heads, layer.key_dim, layer.value_dim, layer.page_tokens,
                         shape_.kv_heads, shape_.key_dim, shape_.value_dim, page_tokens_);
  if (queries.tokens % batch.count != 0 || queries.tokens == 0 || queries.heads <= 0 ||
      queries.heads % shape_.kv_heads != 0 || queries.dim != shape_.key_dim)
    return Status::error(invalid,
                         "queries are [%lld, %d, %d]; expected [a multiple of %d, a multiple of %d "
                         "kv heads, %d]",
                         static_cast<long long>(queries.tokens), queries.heads, queries.dim,
                         batch.count, shape_.kv_heads, shape_.key_dim);
  if (out.tokens != queries.tokens || out.heads != queries.heads || out.dim != shape_.value_dim)
    return Status::error(invalid, "the output is [%lld, %d, %d]; expected [%lld, %d, %d]",
                         static_cast<long long>(out.tokens), out.heads, out.dim,
                         static_cast<long long>(queries.tokens), queries.heads, shape_.value_dim);
  if (queries.data == nullptr || out.data == nullptr || workspace == nullptr)
    return Status::error(invalid, "queries, output or workspace are null");
  const int each = static_cast<int>(queries.tokens / batch.count);
  AttendOptions common;  // what needs no device memory
  common.scale = options.scale;
  common.soft_cap = options.soft_cap;
  common.window = options.window;
  common.first_position = options.first_position;
  common.end_position = options.end_position;
  LayerShape shape = shape_;
  shape.window = layer.window;
  KVTILT_RETURN_IF_ERROR(check_attend_options(common, shape, each, queries.heads));
  if (options.tree_mask != nullptr && each > 64)
    return Status::error(invalid, "a tree mask holds at most 64 queries, not %d", each);

  AttendArguments arguments = make_arguments(layer, batch, queries, out, lse, options);
  arguments.workspace = layout_workspace(workspace, batch.count, each, queries.heads).first;
  arguments.stages = stages_;
  kernel_<<<static_cast<unsigned>(blocks_), 32 * attend_warps, shared_bytes_(stages_, batch.count),
            stream>>>(arguments);
  return launched("attending");
}

}  // namespace kvtilt::cuda
