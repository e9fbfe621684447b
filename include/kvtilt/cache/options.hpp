// SPDX-License-Identifier: MIT
/// The options of a cache, their checks, and whether this build supports a layer's shape and recipe.
#pragma once

#include <kvtilt/cache/allocator.hpp>
#include <kvtilt/cpu/isa.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/page/token_placement.hpp>
#include <kvtilt/quant/plan.hpp>
#include <kvtilt/quant/recipe.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

namespace kvtilt {

struct CacheOptions {
  int page_tokens = 64;  ///< 32, 64 or 128
  int sink_tokens = 4;   ///< first tokens of a sequence, always kept in 16 bits; 0 to 1024
  /// At least so many newest tokens stay in 16 bits; 0 to 65536. A layer with a window also keeps what
  /// each of them sees, so have at least as many as a step drafts: with fewer, attend() can refuse the
  /// step's oldest queries, and truncate() can refuse to drop its tokens.
  int recent_tokens = 128;
  int max_sequences = 1024;
  /// Upper bound of MemoryReport::reserved_bytes; 0: no limit. Blocks of closed sequences count
  /// while the cache keeps them for reuse. A reservation that would exceed the limit first frees
  /// every slab (BlockPool's unit of allocation, at most 32 MiB) that has no block in use. With no
  /// sequence open, whatever plan_memory() puts within the limit therefore fits.
  std::size_t max_bytes = 0;
  /// Says what keys and values mean, e.g. a hash of the model's weights and of how RoPE and transforms
  /// (quant/hadamard.hpp) are applied. save() stores it, and load() refuses a sequence that has another
  /// one; 0 is a fingerprint like any other.
  std::uint64_t fingerprint = 0;
  std::optional<Isa> isa = {};  ///< forces an instruction set; otherwise KVTILT_ISA, else the best
  Allocator allocator = default_allocator();
  /// If not empty, all pages and 16-bit blocks are carved out of this memory, and only page tables
  /// come from the allocator. It serves one cache at a time, may start at any address (up to 63
  /// bytes are lost to alignment), is never freed, and is the caller's again once the cache is
  /// destroyed. Slabs without a block in use are recycled for other block sizes as under max_bytes,
  /// but nothing moves: a gap between slabs in use serves a reservation only if a slab fits in it.
  std::span<std::byte> page_memory = {};
};

inline Status check_tokens(std::int64_t tokens) {
  if (tokens >= 0 && tokens <= max_tokens) return {};
  return Status::error(ErrorCode::InvalidArgument, "cannot reserve %lld tokens, only 0 to 2^40",
                       static_cast<long long>(tokens));
}

/// The numbers that decide which tokens of a layer are sinks, in sealed pages, or in the tail.
constexpr TokenPlacement token_placement(const CacheOptions& options, const LayerShape& shape) {
  return {options.page_tokens, options.sink_tokens, options.recent_tokens, shape.window};
}

inline Status check_options(const CacheOptions& options) {
  KVTILT_RETURN_IF_ERROR(check_placement(token_placement(options, {})));
  if (options.max_sequences < 1 || options.max_sequences > (1 << 20))
    return Status::error(ErrorCode::InvalidArgument, "max_sequences is %d, must be 1 to 1048576",
                         options.max_sequences);
  if (options.page_memory.data() == nullptr && !options.page_memory.empty())
    return Status::error(ErrorCode::InvalidArgument, "page_memory is null, with %zu bytes",
                         options.page_memory.size());
  return {};
}

/// Checks whether this build supports a layer of this shape with this recipe; an error says why not.
/// KVCache::create makes the same check, so no later call fails for this reason.
template <class FormatList = AllFormats>
Status supports(const LayerShape& shape, const Recipe& recipe, int page_tokens = 64) {
  KVTILT_RETURN_IF_ERROR(check_shape(shape, unnumbered_layer));
  KVTILT_RETURN_IF_ERROR(check_page_tokens(page_tokens));
  Result<Recipe> resolved = resolve_recipe(recipe, shape, page_tokens);
  if (!resolved) return std::move(resolved).take_status();
  if (recipe.key.quantized() && !FormatList::keys::contains(recipe.key.bits))
    return Status::error(ErrorCode::Unsupported,
                         "keys of %d bits are not in this build's Keys list", recipe.key.bits);
  if (recipe.value.quantized() && !FormatList::values::contains(recipe.value.bits))
    return Status::error(ErrorCode::Unsupported,
                         "values of %d bits are not in this build's Values list",
                         recipe.value.bits);
  return {};
}

}  // namespace kvtilt
