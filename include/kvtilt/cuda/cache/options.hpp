// SPDX-License-Identifier: MIT
/// How a device cache is set up, and what can be set up.
#pragma once

#include <kvtilt/cache/options.hpp>
#include <kvtilt/cache/token_placement.hpp>
#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/page/convert_page.hpp>
#include <kvtilt/quant/recipe.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt::cuda {

/// All device memory is taken when a cache is created: nothing later allocates any.
struct CacheOptions {
  int page_tokens = 64;     ///< 32, 64 or 128
  int sink_tokens = 4;      ///< first tokens kept in 16 bits for ever, 0 to 1024
  int recent_tokens = 128;  ///< newest tokens kept in 16 bits, at least; 0 to 65536
  /// Open at once; each has its 16-bit blocks from the start. Layers with a window have pages for as many
  /// windows, so forks, which hold the pages they share beside those of their own, can find none left
  /// unless this is larger.
  int max_sequences = 64;
  std::int64_t token_capacity = 65536;  ///< tokens that all sequences together can reserve
  /// The longest sequence; 0: token_capacity. Page tables are made for it, 16 bytes a page, layer and
  /// sequence: with 0, 32 layers and 256 sequences of 64 tokens a page they take 2 KiB a token of
  /// capacity, as much as a small model's pages. A page that a truncation leaves short keeps its entry, so sequences that are cut behind
  /// their tail again and again need more than their tokens: make this larger.
  std::int64_t max_sequence_tokens = 0;
  std::size_t max_bytes = 0;  ///< bounds MemoryPlan::device_bytes(); 0: no limit
  /// Device memory that the cache lives in, if it is not empty: as many bytes as plan_memory()
  /// says, and up to 255 more where it does not start at a multiple of 256. It serves one cache at
  /// a time, is never freed, and is the caller's again when the cache is gone and the streams that
  /// it was used on have finished.
  std::span<std::byte> device_memory = {};

  [[nodiscard]] std::int64_t longest() const {
    return max_sequence_tokens == 0 ? token_capacity : max_sequence_tokens;
  }
};

inline constexpr int max_device_sequences = 65536;
inline constexpr std::int64_t most_token_count = std::int64_t{1} << 35;  ///< pages have 32 bits
inline constexpr int max_layers = 512;  ///< a number for each fits the arguments of a kernel

/// Where tokens go in a layer.
constexpr TokenPlacement token_placement(const CacheOptions& options, const LayerShape& shape) {
  return {options.page_tokens, options.sink_tokens, options.recent_tokens, shape.window};
}

inline Status check_options(const CacheOptions& options) {
  kvtilt::CacheOptions common;
  common.page_tokens = options.page_tokens;
  common.sink_tokens = options.sink_tokens;
  common.recent_tokens = options.recent_tokens;
  KVTILT_RETURN_IF_ERROR(kvtilt::check_options(common));
  if (options.max_sequences < 1 || options.max_sequences > max_device_sequences)
    return Status::error(ErrorCode::InvalidArgument, "max_sequences is %d, must be 1 to %d",
                         options.max_sequences, max_device_sequences);
  if (options.token_capacity < 1 || options.token_capacity > most_token_count)
    return Status::error(ErrorCode::InvalidArgument, "token_capacity is %lld, must be 1 to 2^35",
                         static_cast<long long>(options.token_capacity));
  if (options.max_sequence_tokens < 0 || options.max_sequence_tokens > most_token_count)
    return Status::error(ErrorCode::InvalidArgument,
                         "max_sequence_tokens is %lld, must be 0 (token_capacity) to 2^35",
                         static_cast<long long>(options.max_sequence_tokens));
  if (options.device_memory.data() == nullptr && !options.device_memory.empty())
    return Status::error(ErrorCode::InvalidArgument, "device_memory is null, with %zu bytes",
                         options.device_memory.size());
  return {};
}

/// Whether a device cache serves a layer of this shape with this recipe: Ok, or the reason why not.
/// KVCache::create asks the same question, so nothing is refused later. Attention runs kernels of a
/// list and has a question of its own: supports_attention().
inline Status supports(const LayerShape& shape, const Recipe& recipe, int page_tokens = 64) {
  return supports_device_page(shape, recipe, page_tokens);
}

}  // namespace kvtilt::cuda
