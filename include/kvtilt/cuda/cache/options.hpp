// SPDX-License-Identifier: MIT
/// Options of a device cache, their limits, and which layers it can hold.
#pragma once

#include <kvtilt/core/shape.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/page/convert_page.hpp>
#include <kvtilt/page/token_placement.hpp>
#include <kvtilt/quant/recipe.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt::cuda {

/// Options of KVCache::create, which allocates all device memory: nothing later allocates any.
struct CacheOptions {
  int page_tokens = 64;     ///< 32, 64 or 128
  int sink_tokens = 4;      ///< first tokens kept in 16 bits for ever, 0 to 1024
  int recent_tokens = 128;  ///< newest tokens kept in 16 bits, at least; 0 to 65536
  /// Sequences open at once; the sinks and tail of each are allocated by create. A layer with a
  /// window has pages for this many windows: with forks, which hold shared pages beside their own,
  /// make it larger, or such a layer can run out of pages.
  int max_sequences = 64;
  std::int64_t token_capacity = 65536;  ///< tokens that all sequences together can reserve
  /// Length of the longest sequence, without tokens that remove() or the windows of all layers have
  /// dropped; 0: token_capacity. Page tables are sized by it, 16 bytes per page, layer and
  /// sequence: with 0, 32 layers, 256 sequences and 64 tokens per page, tables take
  /// 2 KiB per token of capacity, as much as a small model's pages. A page that a truncation leaves
  /// short keeps its entry: make this larger if sequences are often cut inside sealed pages.
  std::int64_t max_sequence_tokens = 0;
  std::uint64_t fingerprint = 0;  ///< of the model, for save() and load(): see kvtilt::CacheOptions
  std::size_t max_bytes = 0;      ///< bounds MemoryPlan::device_bytes(); 0: no limit
  /// Device memory for the cache to live in, if not empty: as many bytes as plan_memory() says, and
  /// up to 255 more if it does not start at a multiple of 256. It serves one cache at a time and is
  /// never freed; the caller may use it again when the cache is destroyed and the streams that it
  /// was used on have finished.
  std::span<std::byte> device_memory = {};

  [[nodiscard]] std::int64_t longest() const {
    return max_sequence_tokens == 0 ? token_capacity : max_sequence_tokens;
  }
};

inline constexpr int max_device_sequences = 65536;
inline constexpr std::int64_t most_token_count = std::int64_t{1} << 35;  ///< 32-bit page numbers
inline constexpr int max_layers = 512;  ///< a kernel's 4 KiB of arguments hold 6 bytes for each

/// The numbers that decide which tokens of a layer are sinks, in sealed pages, or in the tail.
constexpr TokenPlacement token_placement(const CacheOptions& options, const LayerShape& shape) {
  return {options.page_tokens, options.sink_tokens, options.recent_tokens, shape.window};
}

inline Status check_options(const CacheOptions& options) {
  KVTILT_RETURN_IF_ERROR(check_placement(token_placement(options, {})));
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

/// Whether a device cache can hold a layer of this shape with this recipe: Ok, or the reason why
/// not. KVCache::create makes the same check, so nothing is refused later. Attention has kernels
/// for a list of cases only, and its own check: supports_attention().
inline Status supports(const LayerShape& shape, const Recipe& recipe, int page_tokens = 64) {
  return supports_device_page(shape, recipe, page_tokens);
}

}  // namespace kvtilt::cuda
