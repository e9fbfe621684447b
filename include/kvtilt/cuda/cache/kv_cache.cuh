// SPDX-License-Identifier: MIT
/// The KV cache in GPU memory: many sequences of one model, keys and values quantized as a plan
/// says. Each sequence keeps its first tokens (sinks) and its newest ones (tail) in 16 bits; a full
/// page that leaves the tail is sealed: quantized once and for all.
#pragma once

#include <kvtilt/core/memory_report.hpp>
#include <kvtilt/core/row_check.hpp>
#include <kvtilt/core/sequence_id.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/cache/append.cuh>
#include <kvtilt/cuda/cache/device_memory.cuh>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/cache/memory_plan.hpp>
#include <kvtilt/cuda/cache/options.hpp>
#include <kvtilt/cuda/cache/saved_layer.cuh>
#include <kvtilt/cuda/cache/sequence_book.hpp>
#include <kvtilt/cuda/cache/sequence_kernels.cuh>
#include <kvtilt/cuda/cache/unpack.cuh>
#include <kvtilt/cuda/error.cuh>
#include <kvtilt/page/saved_reader.hpp>
#include <kvtilt/page/saved_writer.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt::cuda {

/// The sequences that one append or attention launch works on, made by KVCache::batch(). Kernels
/// read their slots (indices of sequences in the cache) from device memory, so a captured graph
/// serves whatever batch is there when it replays.
struct SequenceBatch {
  std::vector<SequenceId> ids;  ///< empty for an empty_batch(), whatever device.count is
  Batch device{};
};

/// kvtilt::KVCache in GPU memory. Calls queue work on a stream and return; those that wait for the
/// stream say so. Only create() allocates device memory. No call changes the current device, which
/// must be that of create(). Use from one thread at a time. The caller must order, across streams,
///   - calls that touch the same sequence;
///   - a close, truncate, remove, note_appended, note_truncated, refresh, or append to a layer with
///     a window, and a later reserve, fork or load, which may hand out the same pages;
///   - a close and a later open, fork or load, which may take the slot that queued kernels use.
///
/// The host keeps its own copy of lengths and page tables, which does not see graph replays; "as
/// the host knows it" means this copy. What only the device can detect (values no format holds,
/// lengths after replays) is recorded there, and poll() reports it. If the device refuses a call
/// that the host accepted, the sequence keeps its tokens on the device, except those in shared
/// pages (held by another sequence too) that the host has released. refresh() then updates the
/// host's copy; also after CUDA refused a launch that the host had already counted.
class KVCache {
 public:
  /// Checks all arguments and allocates all device memory, see plan_memory(). Waits for the stream.
  static Result<KVCache> create(const CacheShape& shape, const Plan& plan,
                                const CacheOptions& options = {}, cudaStream_t stream = nullptr);

  KVCache(KVCache&&) noexcept = default;
  /// Ends this cache, its sequences and views, and puts the other in its place.
  KVCache& operator=(KVCache&& other) noexcept {
    if (this != &other) {
      std::destroy_at(this);
      std::construct_at(this, std::move(other));
    }
    return *this;
  }

  /// Opens a new, empty sequence. Fails with OutOfCapacity at max_sequences.
  Result<SequenceId> open(cudaStream_t stream = nullptr);

  /// Reserves pages so that a sequence can hold `tokens` tokens in all layers, including those it
  /// holds: up to there append cannot run out of pages, except as fork() says of windows. Never
  /// shrinks. Pages that the sequence has dropped, unless they were shared, take later tokens.
  ///
  /// Fails  InvalidArgument (handle, tokens), OutOfMemory while other sequences hold the pages,
  ///        OutOfCapacity if a layer's pool or the sequence's page table is too small in any case; then
  ///        nothing has changed
  /// Cost   one kernel per 300 runs of consecutive pages that it takes
  Status reserve(SequenceId id, std::int64_t tokens, cudaStream_t stream = nullptr);

  /// Drops every token from position `length` on, in all layers; layers that hold fewer do not
  /// change. As on the CPU, a cut inside the tail is exact; a cut inside a sealed page leaves that
  /// page short for good. A short page costs one page of the reservation and one page-table entry,
  /// so the table can be full before the sequence has max_sequence_tokens (reserve then fails with
  /// OutOfCapacity: make that option larger). Fails with InvalidArgument if a window has freed
  /// tokens that the next token would see.
  ///
  /// Speculative decoding: set recent_tokens to at least the longest draft that can be rejected, or
  /// layers with a window refuse the cut and others are left with short pages. Truncation keeps
  /// only a prefix. For a branching draft, call attend_prefill with a tree_mask before appending
  /// anything, then append the accepted rows.
  Status truncate(SequenceId id, std::int64_t length, cudaStream_t stream = nullptr);

  /// Truncates every sequence of a batch to a length in device memory, e.g. to the accepted part of
  /// its draft. May be captured; note_truncated() tells the host of each replay.
  ///
  /// lengths  device, [sequences]
  /// known    host, [sequences]: the same numbers. Empty (required in a capture): not known, the
  ///          host's copy does not change
  /// Fails    as above, as far as the host knows; then nothing changes. A sequence that only the
  ///          device refuses stays as it is, and poll() reports it
  /// Cost     one kernel; with `known`, one more for each sequence that drops shared pages
  Status truncate(const SequenceBatch& batch, const std::int64_t* lengths,
                  std::span<const std::int64_t> known, cudaStream_t stream = nullptr);

  /// Drops the sealed pages that hold exactly positions `from` to `to` - 1, in all layers;
  /// positions that a layer's window has freed count as dropped. Later tokens keep their positions,
  /// and the length does not change. Fails with InvalidArgument, changing nothing, if a layer's
  /// page boundaries do not match; the message names the nearest positions that do. How to shift a
  /// context, kvtilt::KVCache::remove says.
  Status remove(SequenceId id, std::int64_t from, std::int64_t to, cudaStream_t stream = nullptr);

  /// Opens a second sequence with the same tokens: it shares the sealed pages and copies tail and
  /// sinks. It is reserved for `tokens` tokens, or for those it holds if that is more. A shared
  /// page that leaves a window returns to neither reservation: the parent, too, may have to reserve
  /// again once its window has moved on. Fails as open and reserve do, and with InvalidArgument if
  /// layers differ in length. If the host was not told of appends (note_appended), the device
  /// refuses: the new sequence stays empty, and poll() reports it; close it, and refresh() the
  /// parent.
  Result<SequenceId> fork(SequenceId id, std::int64_t tokens = 0, cudaStream_t stream = nullptr);

  /// Bytes that save() writes for a sequence as the host knows it.
  Result<std::size_t> saved_bytes(SequenceId id) const;

  /// Writes all that a sequence holds in the format of page/saved_sequence.hpp, with the bytes that
  /// the CPU's cache would write: each cache loads what the other saved. To lend a sequence's pages
  /// to others: save, close, later load. Refreshes the host's copy first, as refresh() does. Waits
  /// for the stream.
  ///
  /// image  saved_bytes() bytes at a multiple of 16, in one allocation that host and device can
  ///        access: pinned, or managed; no other kernel may run if running kernels bar the host
  ///        from managed memory
  /// Fails  InvalidArgument (handle, size or kind of image, layers of different lengths, a sequence
  ///        that changes meanwhile); the image may then be partly written
  /// Cost   one kernel per layer, at the speed of the image's memory; it also sums the checksum
  Status save(SequenceId id, std::span<std::byte> image, cudaStream_t stream = nullptr);

  /// Opens a new sequence with the tokens of a saved one, which continues as that one would: see
  /// kvtilt::KVCache. It is reserved for `tokens` tokens, or for those it holds if that is more.
  ///
  /// image  complete, from save() of a CPU or GPU cache with the same shape, plan, page_tokens,
  ///        sink_tokens, recent_tokens and fingerprint; memory as for save()
  /// Fails  as open and reserve do; Corrupt (cut off, damaged, no saved sequence), Unsupported
  ///        (another version), InvalidArgument (another cache's settings, another kind of memory)
  /// Cost   two kernels per layer, at the speed of the image's memory; the host reads metadata and
  ///        16-bit tokens. Waits for the stream, as the kernels compute the checksum; if it is
  ///        wrong, the new sequence is closed again
  Result<SequenceId> load(std::span<const std::byte> image, std::int64_t tokens = 0,
                          cudaStream_t stream = nullptr);

  /// Returns a sequence's pages to the cache. A later sequence may take its slot: before you replay
  /// a graph whose batch holds that slot, write another batch to the batch's memory.
  Status close(SequenceId id, cudaStream_t stream = nullptr);

  /// Makes a batch for append and attention. A graph captured with it reads `memory` at each
  /// replay, and so serves the batch last written there, of as many sequences or fewer. Places that
  /// this leaves over act as empty sequences: nothing is appended, and attention gives zeros and
  /// -inf, or sink logits. Order the call with queued replays, and give note_appended() the new
  /// batch.
  ///
  /// memory  device, at least ids.size() numbers, for the batch alone while it is used. What is
  ///         left of it is filled with -1: no sequence. Attention takes batches of up to 1024
  Result<SequenceBatch> batch(std::span<const SequenceId> ids, std::span<std::int32_t> memory,
                              cudaStream_t stream = nullptr);
  /// A batch of one, which needs no memory; a graph captured with it serves this slot for ever.
  Result<SequenceBatch> batch(SequenceId id) const;
  /// A batch of memory.size() places without sequences, to capture a graph before there are any.
  /// Replays serve what batch() later writes to the same memory.
  Result<SequenceBatch> empty_batch(std::span<std::int32_t> memory, cudaStream_t stream = nullptr);

  /// Adds tokens to one layer of every sequence of a batch, and seals pages as they fill. Keys come
  /// after RoPE. May be captured: each replay uses the numbers then in device memory, and
  /// note_appended() tells the host of it.
  ///
  /// keys    device, [rows, kv_heads, key_dim], channels contiguous, f32, f16 or bf16; rounded to
  ///         fp16
  /// values  device, [rows, kv_heads, value_dim], likewise
  /// indptr  device, [sequences + 1]: rows indptr[i] to indptr[i + 1] - 1 are of sequence i; never
  ///         descends, from 0 or more to at most the number of rows. Null: equally many rows for
  ///         each
  /// tokens  host, [sequences]: how many tokens indptr gives each. In a capture they only choose the
  ///         kernel (see Cost). Empty: the host's copy does not change. Ignored without indptr
  /// Fails   InvalidArgument (shapes, handles, layer) or, as far as the host knows, OutOfCapacity
  ///         (reserve more): nothing is queued. NaN is stored as 0, a magnitude that is too large
  ///         as the largest that the recipe holds, and poll() reports it. On the device nothing is
  ///         appended to a sequence that lacks pages, nor to any if indptr is invalid: poll()
  ///         reports both, and refresh() updates the host's copy
  /// Cost    one kernel: if some sequence gets a whole page of tokens, one that takes pages as a
  ///         whole, else one for steps. `tokens` decides, without it the rows per sequence in the
  ///         mean: give it where prompts and steps share a batch. Either is right for any numbers.
  ///         One more for each sequence whose window frees shared pages
  Status append(const SequenceBatch& batch, int layer, const TensorView& keys,
                const TensorView& values, const std::int32_t* indptr,
                std::span<const std::int32_t> tokens, cudaStream_t stream = nullptr);
  Status append(const SequenceBatch& batch, int layer, const TensorView& keys,
                const TensorView& values, cudaStream_t stream = nullptr);
  Status append(SequenceId id, int layer, const TensorView& keys, const TensorView& values,
                cudaStream_t stream = nullptr);

  /// Copies the tokens at positions `first` to first + n - 1 out of one layer, with the bits that
  /// kvtilt::unpack gives. May be captured.
  ///
  /// keys    device, receives [n, kv_heads, key_dim], channels contiguous, f32, f16 or bf16; {}:
  ///         skipped
  /// values  device, receives [n, kv_heads, value_dim], likewise
  /// Fails   InvalidArgument (shapes, handle, layer, more than 2^24 tokens), before anything is
  ///         queued. Rows of positions that were never appended, or were removed or freed, are not
  ///         written, and poll() reports it
  Status unpack(SequenceId id, int layer, std::int64_t first, const MutableTensorView& keys,
                const MutableTensorView& values, cudaStream_t stream = nullptr) const;

  /// One layer as kernels see it, for attention and pack_pages(). Valid as long as the cache
  /// exists, whatever happens to sequences.
  Result<LayerView> view(int layer) const;

  /// Tells the host that a graph replay has appended tokens[i] tokens to sequence i of a batch in
  /// all layers, or truncated it to lengths[i]. Call it once for each time that all layers were
  /// appended to or truncated, in the same order. If several appends are told as one, the host may
  /// think that a window holds other pages than it does; the device then refuses forks until
  /// refresh().
  ///
  /// stream  ordered after the replay: the device drops on it the shared pages that the host
  ///         releases here, if it still holds them
  /// Fails   InvalidArgument (handles, sizes, negative numbers, lengths that a window forbids),
  ///         OutOfCapacity (more than is reserved in some layer of some sequence); then the host's
  ///         copy does not change, though the device may have done the rest: refresh() the batch's
  ///         sequences
  Status note_appended(const SequenceBatch& batch, std::span<const std::int32_t> tokens,
                       cudaStream_t stream);
  Status note_truncated(const SequenceBatch& batch, std::span<const std::int64_t> lengths,
                        cudaStream_t stream);

  /// Tokens that append takes before it seals a page of this layer (see kvtilt::KVCache), as the
  /// host knows it: appends by graph replays count once the host is told.
  Result<std::int64_t> tokens_before_seal(SequenceId id, int layer) const;

  /// Pages of a layer's pool that no sequence has reserved.
  Result<std::int64_t> free_pages(int layer) const;
  /// Tokens that a sequence can hold in all layers before it must reserve again, as the host knows
  /// it; at most max_sequence_tokens beside those that it has dropped.
  Result<std::int64_t> reserved_tokens(SequenceId id) const;

  /// Tokens in one layer, or in the shortest layer that keeps a cache, as the host knows it.
  Result<std::int64_t> length(SequenceId id, int layer) const;
  Result<std::int64_t> length(SequenceId id) const;
  /// Tokens in one layer as the device knows it. Waits for the stream.
  Result<std::int64_t> length(SequenceId id, int layer, cudaStream_t stream) const;

  /// Copies a sequence's lengths and page tables from the device to the host, after appends that
  /// the host was not told of. Waits for the stream, twice.
  Status refresh(SequenceId id, cudaStream_t stream);

  /// Returns the first error on the device since the last poll, or Ok. Waits for the stream.
  /// Refused work comes first; if values were repaired (InvalidValue) as well, the next poll
  /// reports that.
  ///
  /// record  if not null, receives the error as numbers: which request failed, where and how often;
  ///         DeviceFault says what they are
  Status poll(cudaStream_t stream, DeviceRecord* record = nullptr);

  /// Bytes of one sequence, or of all together, as the host knows it; reserved_bytes is all of the
  /// device memory (0 for one sequence).
  Result<MemoryReport> memory(SequenceId id) const;
  [[nodiscard]] MemoryReport memory() const;

  /// 8 x bytes of a full page / its unpadded elements, over all layers.
  [[nodiscard]] double page_bits() const;

  [[nodiscard]] int layers() const { return static_cast<int>(views_.size()); }

 private:
  KVCache(const CacheOptions& options, detail::DeviceLayout layout, DeviceMemory memory);

  Status upload(cudaStream_t stream);
  [[nodiscard]] const LayerShape& shape(int layer) const {
    return layout_.layers[static_cast<std::size_t>(layer)].shape;
  }
  Status append(std::span<const SequenceId> ids, const Batch& batch, int layer,
                const TensorView& keys, const TensorView& values, const std::int32_t* indptr,
                std::span<const std::int32_t> tokens, cudaStream_t stream);
  [[nodiscard]] Layers device_layers() const {
    return {reinterpret_cast<const LayerView*>(memory_.data() + layout_.views), layers()};
  }
  [[nodiscard]] SavedResult* saved_result() const {
    return reinterpret_cast<SavedResult*>(memory_.data() + layout_.saved);
  }
  [[nodiscard]] const std::int32_t* device_slots() const {
    return reinterpret_cast<const std::int32_t*>(memory_.data() + layout_.slots);
  }
  /// Makes the device drop the shared pages that the book dropped in layers `first` to last - 1,
  /// then frees them for other sequences. Called after each call that the book has recorded.
  Status drop_shared(std::span<const SequenceId> ids, int first, int last, cudaStream_t stream);
  static Result<std::byte*> device_address(std::span<const std::byte> image);
  template <class Act>
  SavedWriter write_tables(SequenceId id, std::int64_t length, std::span<std::byte> image,
                           Act act) const;
  template <class Launch>
  Result<std::uint64_t> sum_of_blocks(Launch launch, cudaStream_t stream) const;
  void add_usage(std::uint32_t slot, MemoryReport& report) const;

  CacheOptions options_;
  detail::DeviceLayout layout_;
  DeviceMemory memory_;
  SequenceBook book_;
  std::vector<LayerView> views_;
  std::vector<PageRun> given_;        ///< scratch of one call
  std::vector<std::int32_t> counts_;  ///< scratch of one call
};

}  // namespace kvtilt::cuda

#include <kvtilt/cuda/cache/kv_cache.inl>
#include <kvtilt/cuda/cache/kv_cache_saved.inl>
#include <kvtilt/cuda/cache/kv_cache_tokens.inl>
