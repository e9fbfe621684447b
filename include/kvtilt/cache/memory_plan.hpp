// SPDX-License-Identifier: MIT
/// How much memory a cache will take for given lengths, computed without creating one.
#pragma once

#include <kvtilt/cache/block_pools.hpp>
#include <kvtilt/cache/layer_store.hpp>
#include <kvtilt/cache/options.hpp>
#include <kvtilt/cache/sequence_layer.hpp>
#include <kvtilt/core/memory_report.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvtilt {

/// The bytes over all layers of sequences that are each opened and reserved once: to the byte what
/// they take from the allocator and page_memory. The cache's own objects, which come from operator
/// new and do not grow with tokens, are not included.
struct MemoryPlan {
  std::size_t sink_bytes = 0;   ///< 16-bit blocks of the first tokens
  std::size_t tail_bytes = 0;   ///< 16-bit blocks of the newest tokens
  std::size_t page_bytes = 0;   ///< quantized pages
  std::size_t slab_bytes = 0;   ///< reference counts and headers of the pools
  std::size_t table_bytes = 0;  ///< page tables; always from the allocator
  MemoryReport filled;          ///< KVCache::memory() once all tokens have been appended

  /// The size that page_memory needs if it is used and starts at a multiple of page_alignment.
  [[nodiscard]] std::size_t page_memory_bytes() const {
    return sink_bytes + tail_bytes + page_bytes + slab_bytes;
  }
  /// The sum of all, which max_bytes bounds.
  [[nodiscard]] std::size_t reserved_bytes() const { return page_memory_bytes() + table_bytes; }
};

namespace detail {

/// The layers of a cache, without any memory for tokens. All sequences are alike and reserve one
/// after another: each takes exactly what it needs and leaves nothing over for the next.
class MemoryModel {
 public:
  template <class FormatList>
  static Result<MemoryModel> make(const CacheShape& shape, const Plan& plan,
                                  const CacheOptions& options) {
    KVTILT_RETURN_IF_ERROR(check_options(options));
    MemoryModel model(options);
    Result<std::vector<LayerStore>> stores =
        make_layer_stores<FormatList>(shape, plan, options, model.pools_);
    if (!stores) return std::move(stores).take_status();
    model.stores_ = *std::move(stores);
    return model;
  }

  [[nodiscard]] const std::vector<LayerStore>& stores() const { return stores_; }

  [[nodiscard]] Status check_sequences(int sequences) const {
    if (sequences >= 1 && sequences <= options_.max_sequences) return {};
    return Status::error(ErrorCode::InvalidArgument,
                         "cannot plan for %d sequences, only for 1 to max_sequences, which is %d",
                         sequences, options_.max_sequences);
  }

  /// The arguments must have been checked.
  [[nodiscard]] Result<MemoryPlan> plan(std::int64_t tokens, int sequences) {
    const std::size_t count = static_cast<std::size_t>(sequences);
    const std::size_t table_bytes = want(tokens);
    const std::size_t bytes = saturating_add(pools_.missing_bytes(), table_bytes);
    if (bytes > max_bytes / count)
      return Status::error(ErrorCode::OutOfMemory,
                           "%d sequences of %lld tokens need more than 2^56 bytes", sequences,
                           static_cast<long long>(tokens));
    MemoryPlan plan;
    plan.table_bytes = count * table_bytes;
    for (const LayerStore& store : stores_) add_layer(store, tokens, count, plan);
    plan.slab_bytes = count * pools_.missing_bytes() - plan.page_memory_bytes();
    plan.filled.reserved_bytes = plan.reserved_bytes();
    return plan;
  }

  /// Whether this reservation stays within max_bytes and page_memory.
  [[nodiscard]] bool fits(std::int64_t tokens, int sequences) {
    const Result<MemoryPlan> planned = plan(tokens, sequences);
    return planned.ok() &&
           (options_.max_bytes == 0 || planned->reserved_bytes() <= options_.max_bytes) &&
           (pools_.arena() == nullptr ||
            planned->page_memory_bytes() <= pools_.arena()->free_bytes());
  }

 private:
  /// Keeps every product far from overflow; no machine has so large an address space.
  static constexpr std::size_t max_bytes = std::size_t{1} << 56;

  explicit MemoryModel(const CacheOptions& options)
      : options_(options), pools_(options.allocator, options.page_memory) {}

  [[nodiscard]] SequenceLayer empty_layer(const LayerStore& store) const {
    return {store.placement, options_.allocator};
  }

  /// Registers one sequence's blocks with the pools; returns the bytes of its tables.
  [[nodiscard]] std::size_t want(std::int64_t tokens) {
    std::size_t table_bytes = 0;
    pools_.want_nothing();
    for (const LayerStore& store : stores_) {
      if (store.shape.kv_heads == 0) continue;
      const SequenceLayer layer = empty_layer(store);
      const BlockCounts blocks = layer.missing_for(tokens);
      store.want(blocks, pools_);
      table_bytes += layer.missing_table_bytes(blocks);
    }
    return table_bytes;
  }

  void add_layer(const LayerStore& store, std::int64_t tokens, std::size_t sequences,
                 MemoryPlan& plan) const {
    if (store.shape.kv_heads == 0) return;
    const BlockCounts blocks = empty_layer(store).missing_for(tokens);
    plan.sink_bytes += sequences * blocks.sinks * store.layout(PageKind::Sinks).bytes;
    plan.tail_bytes += sequences * blocks.tail * store.layout(PageKind::Tail).bytes;
    plan.page_bytes += sequences * blocks.sealed * store.layout(PageKind::Sealed).bytes;

    const TokenCounts held = store.placement.counts_at(tokens);
    const std::int64_t count = static_cast<std::int64_t>(sequences);
    const auto add = [&](PageKind kind, std::int64_t entries, std::int64_t in_them) {
      store.add_usage(kind, count * entries, count * in_them, plan.filled);
    };
    add(PageKind::Sinks, held.sinks > 0 ? 1 : 0, held.sinks);
    add(PageKind::Sealed, held.pages, held.pages * store.placement.page_tokens);
    add(PageKind::Tail, held.tail_blocks, held.tail);
  }

  CacheOptions options_;
  BlockPools pools_;
  std::vector<LayerStore> stores_;
};

}  // namespace detail

/// Computes the bytes for `sequences` sequences of `tokens` tokens each. options.isa is ignored, so
/// the plan may be for another machine; so are max_bytes and page_memory, which most_tokens() applies.
///
/// FormatList  as for KVCache::create
/// Fails       as KVCache::create and reserve do with these arguments, and if `sequences` is more
///             than options.max_sequences
/// Cost        time that grows with the number of layers and of pages inside a window
template <class FormatList = AllFormats>
Result<MemoryPlan> plan_memory(const CacheShape& shape, const Plan& plan,
                               const CacheOptions& options, std::int64_t tokens,
                               int sequences = 1) {
  Result<detail::MemoryModel> model = detail::MemoryModel::make<FormatList>(shape, plan, options);
  if (!model) return std::move(model).take_status();
  KVTILT_RETURN_IF_ERROR(check_tokens(tokens));
  KVTILT_RETURN_IF_ERROR(model->check_sequences(sequences));
  return model->plan(tokens, sequences);
}

/// Finds the most tokens that each of `sequences` sequences can reserve under options.max_bytes,
/// options.page_memory, or both; max_tokens if windows keep the memory of every layer below them.
///
/// Fails  as plan_memory() does, with InvalidArgument if the options have no limit, and with
///        OutOfMemory if not even sequences without tokens fit
/// Cost   some 60 times that of plan_memory()
template <class FormatList = AllFormats>
Result<std::int64_t> most_tokens(const CacheShape& shape, const Plan& plan,
                                 const CacheOptions& options, int sequences = 1) {
  Result<detail::MemoryModel> model = detail::MemoryModel::make<FormatList>(shape, plan, options);
  if (!model) return std::move(model).take_status();
  KVTILT_RETURN_IF_ERROR(model->check_sequences(sequences));
  if (options.max_bytes == 0 && options.page_memory.empty())
    return Status::error(ErrorCode::InvalidArgument,
                         "max_bytes is 0 and page_memory is empty: nothing limits the tokens");
  if (!model->fits(0, sequences))
    return Status::error(ErrorCode::OutOfMemory,
                         "%d sequences need %zu bytes before their first token; max_bytes is %zu",
                         sequences, model->plan(0, sequences)->reserved_bytes(), options.max_bytes);
  // Doubling first: planning a length far beyond the limit costs far more than planning the answer.
  std::int64_t fitting = 0;
  std::int64_t end = 1;
  while (end <= max_tokens && model->fits(end, sequences)) fitting = std::exchange(end, 2 * end);
  end = std::min(end, max_tokens + 1);
  while (end - fitting > 1) {
    const std::int64_t middle = fitting + (end - fitting) / 2;
    (model->fits(middle, sequences) ? fitting : end) = middle;
  }
  return fitting;
}

}  // namespace kvtilt
