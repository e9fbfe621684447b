// SPDX-License-Identifier: MIT
/// What the host knows of the sequences of a device cache: copies of lengths and tables. It repeats
/// on them, with the same functions, what the kernels do, so that it need not read the device.
#pragma once

#include <kvtilt/core/sequence_id.hpp>
#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/cache/memory_plan.hpp>
#include <kvtilt/cuda/cache/page_list.hpp>
#include <kvtilt/cuda/cache/sequence_calls.hpp>
#include <kvtilt/cuda/cache/sequence_state.hpp>
#include <kvtilt/page/page_range.hpp>
#include <kvtilt/page/saved_reader.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt::cuda {

/// Keeps the host's copy of all sequences. It must be told of appends by replayed graphs
/// (note_appended); if it is not, a sequence may lose pages, or tokens that were to be dropped
/// anyway, or the device may refuse a call, but no byte is ever wrong: kernels decide by their own
/// lengths, and refuse to fork a sequence that is not as the host believes. Shared pages that the
/// host has dropped are named to the device, which drops them if it still has them; other sequences
/// get them only when that is queued (release_dropped). Calls that fail change nothing. Not
/// thread-safe.
class SequenceBook {
 public:
  SequenceBook(const std::vector<detail::DeviceLayer>& layers, const CacheOptions& options);

  [[nodiscard]] int layers() const { return static_cast<int>(layers_.size()); }
  [[nodiscard]] int max_sequences() const { return static_cast<int>(sequences_.size()); }

  /// InvalidArgument unless the sequence is open; unless the layer exists and keeps a cache.
  [[nodiscard]] Status check(SequenceId id) const;
  [[nodiscard]] Status check_layer(int layer) const;

  Result<SequenceId> open();
  /// Appends to `given` the pages that the device's table needs, too.
  Status reserve(SequenceId id, std::int64_t tokens, std::vector<PageRun>& given);
  Status truncate(SequenceId id, std::int64_t length);
  /// All of them or none.
  Status truncate(std::span<const SequenceId> ids, std::span<const std::int64_t> lengths);
  Status remove(SequenceId id, std::int64_t from, std::int64_t to);
  /// Fills `request`, and `given` as reserve() does.
  Result<SequenceId> fork(SequenceId id, std::int64_t tokens, ForkRequest& request,
                          std::vector<PageRun>& given);
  /// The length that all layers have; an error if they differ: one cannot `verb` such a sequence.
  [[nodiscard]] Result<std::int64_t> common_length(SequenceId id, const char* verb) const;
  /// Opens a sequence with lengths and tables as saved. Fills `given` as reserve() does: the first
  /// pages of each layer are those of the saved tokens, in order.
  Result<SequenceId> load(const SavedReader& saved, std::int64_t tokens,
                          std::vector<PageRun>& given);
  Status close(SequenceId id);

  /// InvalidArgument if one of them is not open, or is named twice.
  [[nodiscard]] Status check_batch(std::span<const SequenceId> ids);
  /// Whether counts[i] tokens can be appended to ids[i], a valid batch, in a layer.
  [[nodiscard]] Status check_append(std::span<const SequenceId> ids, int layer,
                                    std::span<const std::int32_t> counts) const;
  /// Records that they were appended; call it after check_append().
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
  /// Shared pages that calls have dropped since the last release_dropped(). The device must drop
  /// them, too, even if it refuses those calls, before other sequences are given them.
  [[nodiscard]] std::span<const PageSlot> dropped(std::uint32_t slot, int layer) const {
    const Layer& own = sequences_[slot].layers[static_cast<std::size_t>(layer)];
    return std::span<const PageSlot>(own.table).subspan(
        static_cast<std::size_t>(own.state.page_capacity));
  }
  /// Frees the dropped pages for other sequences; the device must have been told to drop them.
  void release_dropped(std::uint32_t slot, int layer);
  /// Tokens up to which appends to an open sequence need no further reserve; at most
  /// max_sequence_tokens beside those that it has dropped.
  [[nodiscard]] std::int64_t reserved_tokens(std::uint32_t slot) const;
  [[nodiscard]] const PageList& pages(int layer) const {
    return pages_[static_cast<std::size_t>(layer)];
  }

  /// Replaces the host's copy of a sequence in a layer by the device's, after appends that the host
  /// was not told of. `table` has page_capacity entries.
  Status adopt(SequenceId id, int layer, const SequenceState& state,
               std::span<const PageSlot> table);

 private:
  struct Layer {
    SequenceState state{};
    std::vector<PageSlot> table;  ///< page_capacity entries, then the dropped pages
  };
  struct Sequence {
    std::vector<Layer> layers;
    std::uint32_t generation = 0;
    bool is_open = false;
    std::uint64_t named = 0;  ///< number of the last batch that named it
  };

  [[nodiscard]] bool cached(std::size_t layer) const { return layers_[layer].shape.kv_heads > 0; }
  [[nodiscard]] std::int64_t missing_pages(std::size_t layer, const SequenceState& state,
                                           const PageSlot* table, std::int64_t tokens) const;
  /// held  entries of the table that will be in use; `own` holds the short pages among them
  [[nodiscard]] Status check_room(std::size_t layer, std::int64_t missing, std::int32_t held,
                                  const Layer& own, std::int64_t tokens) const;
  [[nodiscard]] std::int64_t dropped_tokens(std::span<const Layer> layers) const;
  [[nodiscard]] Status check_tokens(std::int64_t tokens, std::span<const Layer> layers) const;
  [[nodiscard]] Result<std::uint32_t> free_slot() const;
  [[nodiscard]] Status check_truncate(SequenceId id, std::int64_t length) const;
  void cut(SequenceId id, std::int64_t length);
  void give(std::size_t layer, Layer& own, std::int64_t count, std::vector<PageRun>& given);
  SequenceId occupy(std::uint32_t slot);

  std::vector<detail::DeviceLayer> layers_;
  std::vector<PageList> pages_;      ///< [layer]
  std::vector<Sequence> sequences_;  ///< [slot]
  std::int64_t longest_;
  std::uint64_t batches_ = 0;  ///< batches checked so far: finds duplicates without allocating
};

}  // namespace kvtilt::cuda

#include <kvtilt/cuda/cache/sequence_book.inl>
#include <kvtilt/cuda/cache/sequence_book_copies.inl>
