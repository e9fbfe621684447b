// SPDX-License-Identifier: MIT
/// What the host knows of the sequences of a device cache. It repeats on copies of lengths and
/// tables what the kernels do to theirs, with the same functions, so that it need not ask.
#pragma once

#include <kvtilt/cache/page_range.hpp>
#include <kvtilt/cache/saved_reader.hpp>
#include <kvtilt/cache/sequence_id.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/cache/memory_plan.hpp>
#include <kvtilt/cuda/cache/page_list.hpp>
#include <kvtilt/cuda/cache/sequence_calls.hpp>
#include <kvtilt/cuda/cache/sequence_state.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt::cuda {

/// Appends by a replayed graph have to be told (note_appended). What was not told costs pages, tokens
/// that were to be forgotten or a refusal, never a wrong byte: kernels decide by their own lengths,
/// refuse a fork of a sequence that is not as the host believes, and are told of shared pages that
/// the host has let go of (lost), where they did not do so themselves; until that is queued (settle)
/// nobody else is given them. Calls that fail change nothing.
/// Plain memory to threads.
class SequenceBook {
 public:
  SequenceBook(const std::vector<detail::DeviceLayer>& layers, const CacheOptions& options);

  [[nodiscard]] int layers() const { return static_cast<int>(layers_.size()); }
  [[nodiscard]] int max_sequences() const { return static_cast<int>(sequences_.size()); }

  /// InvalidArgument unless the sequence is open, the layer there and cached.
  [[nodiscard]] Status check(SequenceId id) const;
  [[nodiscard]] Status check_layer(int layer) const;

  Result<SequenceId> open();
  /// Appends to `given` the pages that the device must be given.
  Status reserve(SequenceId id, std::int64_t tokens, std::vector<PageRun>& given);
  Status truncate(SequenceId id, std::int64_t length);
  /// All of them or none.
  Status truncate(std::span<const SequenceId> ids, std::span<const std::int64_t> lengths);
  Status remove(SequenceId id, std::int64_t from, std::int64_t to);
  /// Fills `request`, and `given` as reserve() does.
  Result<SequenceId> fork(SequenceId id, std::int64_t tokens, ForkRequest& request,
                          std::vector<PageRun>& given);
  /// Tokens in every layer; to `verb` a sequence takes that.
  [[nodiscard]] Result<std::int64_t> common_length(SequenceId id, const char* verb) const;
  /// A sequence as it was saved, that the device must be given the same pages for. Fills `given` as
  /// reserve() does: the first pages of each layer are those of its tokens, in order.
  Result<SequenceId> load(const SavedReader& saved, std::int64_t tokens,
                          std::vector<PageRun>& given);
  Status close(SequenceId id);

  /// InvalidArgument if one of them is not open, or is named twice.
  [[nodiscard]] Status check_batch(std::span<const SequenceId> ids);
  /// Whether counts[i] tokens can be appended to ids[i], a valid batch, in a layer.
  [[nodiscard]] Status check_append(std::span<const SequenceId> ids, int layer,
                                    std::span<const std::int32_t> counts) const;
  /// They were; after check_append().
  void note_appended(std::span<const SequenceId> ids, int layer,
                     std::span<const std::int32_t> counts);

  [[nodiscard]] bool is_open(std::uint32_t slot) const { return sequences_[slot].is_open; }
  /// Layer and sequence must exist.
  [[nodiscard]] const SequenceState& state(std::uint32_t slot, int layer) const {
    return sequences_[slot].layers[static_cast<std::size_t>(layer)].state;
  }
  [[nodiscard]] std::span<const PageSlot> table(std::uint32_t slot, int layer) const {
    const Layer& own = sequences_[slot].layers[static_cast<std::size_t>(layer)];
    return {own.table.data(), static_cast<std::size_t>(own.state.page_capacity)};
  }
  /// Shared pages that calls since the last settle() let go of: the device must let go of them, too,
  /// even if it refuses those calls, before others may be given them.
  [[nodiscard]] std::span<const PageSlot> lost(std::uint32_t slot, int layer) const {
    const Layer& own = sequences_[slot].layers[static_cast<std::size_t>(layer)];
    return std::span<const PageSlot>(own.table).subspan(
        static_cast<std::size_t>(own.state.page_capacity));
  }
  /// The device has let go of what is lost.
  void settle(std::uint32_t slot, int layer);
  /// Tokens up to which appends to an open sequence need no other reserve, max_sequence_tokens at
  /// most.
  [[nodiscard]] std::int64_t reserved_tokens(std::uint32_t slot) const;
  [[nodiscard]] const PageList& pages(int layer) const {
    return pages_[static_cast<std::size_t>(layer)];
  }

  /// Takes over what the device holds of a sequence in a layer: appends that nobody told, and what
  /// came of them. `table` has page_capacity entries.
  Status adopt(SequenceId id, int layer, const SequenceState& state,
               std::span<const PageSlot> table);

 private:
  struct Layer {
    SequenceState state{};
    std::vector<PageSlot> table;  ///< up to page_capacity; behind it what is lost
  };
  struct Sequence {
    std::vector<Layer> layers;
    std::uint32_t generation = 0;
    bool is_open = false;
    std::uint64_t named = 0;  ///< by the batch of this number
  };

  [[nodiscard]] bool cached(std::size_t layer) const { return layers_[layer].shape.kv_heads > 0; }
  [[nodiscard]] std::int64_t missing_pages(std::size_t layer, const SequenceState& state,
                                           const PageSlot* table, std::int64_t tokens) const;
  /// held  entries of the table that will be in use; `own` holds the short pages among them
  [[nodiscard]] Status check_room(std::size_t layer, std::int64_t missing, std::int32_t held,
                                  const Layer& own, std::int64_t tokens) const;
  [[nodiscard]] Status check_tokens(std::int64_t tokens) const;
  [[nodiscard]] Result<std::uint32_t> free_slot() const;
  [[nodiscard]] Status check_truncate(SequenceId id, std::int64_t length) const;
  void cut(SequenceId id, std::int64_t length);
  void give(std::size_t layer, Layer& own, std::int64_t count, std::vector<PageRun>& given);
  SequenceId occupy(std::uint32_t slot);

  std::vector<detail::DeviceLayer> layers_;
  std::vector<PageList> pages_;      ///< [layer]
  std::vector<Sequence> sequences_;  ///< [slot]
  std::int64_t longest_;
  std::uint64_t batches_ = 0;  ///< checked so far: appends check theirs, and allocate nothing
};

}  // namespace kvtilt::cuda

#include <kvtilt/cuda/cache/sequence_book.inl>
#include <kvtilt/cuda/cache/sequence_book_copies.inl>
