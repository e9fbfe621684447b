// SPDX-License-Identifier: MIT
/// The cache on a GPU: many sequences of one model, keys and values in the bits a plan gives them.
#pragma once

#include <kvtilt/cache/memory_report.hpp>
#include <kvtilt/cache/row_check.hpp>
#include <kvtilt/cache/saved_reader.hpp>
#include <kvtilt/cache/saved_writer.hpp>
#include <kvtilt/cache/sequence_id.hpp>
#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/cache/append.cuh>
#include <kvtilt/cuda/cache/device_memory.cuh>
#include <kvtilt/cuda/cache/layer_storage.hpp>
#include <kvtilt/cuda/cache/memory_plan.hpp>
#include <kvtilt/cuda/cache/options.hpp>
#include <kvtilt/cuda/cache/saved_layer.cuh>
#include <kvtilt/cuda/cache/sequence_book.hpp>
#include <kvtilt/cuda/cache/sequence_kernels.cuh>
#include <kvtilt/cuda/cache/unpack.cuh>
#include <kvtilt/cuda/error.cuh>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt::cuda {

/// Sequences that are appended to, or attended, in one launch. Made by KVCache::batch; kernels read
/// the slots in device memory, so that a graph replays for whatever batch is there.
struct SequenceBatch {
  std::vector<SequenceId> ids;  ///< none in an empty_batch(), whatever device.count is
  Batch device{};
};

/// kvtilt::KVCache with a stream. Everything is queued and nothing waits, except what says so; no
/// call but create allocates device memory. The streams of calls that touch the same sequence must
/// be ordered, and so must a close, truncate, remove, note_appended, note_truncated, refresh or an
/// append to a layer with a window and the reserve, fork or load after it, which may hand out the same
/// pages, and a close and the open, fork or load after it, which may take the same slot while kernels in
/// front of the close work on it. Neither create nor anything else changes the current device, which
/// must be the one of create. One thread at a time.
///
/// What only the device sees (values that no format holds; lengths after replays of a graph) cannot
/// be returned: it is recorded, and poll() tells. A call that the device refuses when the host has
/// taken it leaves its sequence alone, but for pages that are another's, too, and that the host has
/// let go of: their tokens are gone. refresh() makes the host know again; also where CUDA refused a
/// launch, and the host has taken what the device never got.
class KVCache {
 public:
  /// Checks everything that can be wrong with the arguments, and takes all memory: see plan_memory.
  /// Waits for the stream.
  static Result<KVCache> create(const CacheShape& shape, const Plan& plan,
                                const CacheOptions& options = {}, cudaStream_t stream = nullptr);

  KVCache(KVCache&&) noexcept = default;
  KVCache& operator=(KVCache&&) = delete;

  /// A new, empty sequence. Fails with OutOfCapacity at max_sequences.
  Result<SequenceId> open(cudaStream_t stream = nullptr);

  /// Makes room for `tokens` tokens in all layers of a sequence, those it holds included: until
  /// then append cannot run out, but for what fork() says of windows. Never shrinks. Fails with
  /// OutOfMemory while other sequences hold the pages, or with OutOfCapacity where no layer or table
  /// would ever have so many; then nothing changes. Cost: one kernel, one more for each 300 pieces
  /// that the free pages lie in.
  Status reserve(SequenceId id, std::int64_t tokens, cudaStream_t stream = nullptr);

  /// Forgets every token from `length` on, in all layers; layers that hold fewer keep what they
  /// hold. As on the CPU: exact inside the tail; a cut inside a sealed page leaves that page shorter,
  /// for good: it costs a page of the reservation and an entry of the page table, which can be full
  /// before the sequence has max_sequence_tokens (OutOfCapacity of reserve: make that larger). Fails
  /// with InvalidArgument if a window has freed tokens that the next one would see.
  ///
  /// Of drafts: recent_tokens should be at least as many as can be rejected, or layers with a window
  /// refuse, and others are left with short pages. What is accepted of a branching tree, and is no
  /// prefix of what was appended, no truncation keeps: attend_prefill with a tree_mask before
  /// anything is appended, then append the accepted rows.
  Status truncate(SequenceId id, std::int64_t length, cudaStream_t stream = nullptr);

  /// The same for every sequence of a batch, to lengths in device memory: of drafts, what was
  /// accepted. May be captured; note_truncated() tells the host of each replay.
  ///
  /// lengths  device, [sequences]
  /// known    host: the numbers that `lengths` holds. Empty: not known, the host is not told
  /// Fails    as above, as far as the host knows, and then changes nothing. What only the device
  ///          refuses leaves that sequence alone, and poll() tells
  /// Cost     one kernel
  Status truncate(const SequenceBatch& batch, const std::int64_t* lengths,
                  std::span<const std::int64_t> known, cudaStream_t stream = nullptr);

  /// Drops the sealed pages that hold exactly the positions `from` to `to`-1, in all layers: what a
  /// layer's window has freed of them is gone already. Later tokens keep their positions, length
  /// stays. Fails with InvalidArgument where a layer's pages do not end there (the message names the
  /// nearest that do), and then changes nothing.
  Status remove(SequenceId id, std::int64_t from, std::int64_t to, cudaStream_t stream = nullptr);

  /// A second sequence with the same tokens: shares sealed pages, copies tail and sinks. It is
  /// reserved for `tokens` tokens, or for those it holds if that is more. A shared page that a window
  /// leaves behind comes back to neither: the first one, too, may have to reserve again once its window
  /// has moved on. Fails as open and reserve do, and if layers differ in length. If appends were not
  /// told (note_appended), the device refuses, the new sequence stays empty, and poll() tells: close
  /// it, and refresh() the other.
  Result<SequenceId> fork(SequenceId id, std::int64_t tokens = 0, cudaStream_t stream = nullptr);

  /// Bytes that save() writes for a sequence as the host knows it.
  Result<std::size_t> saved_bytes(SequenceId id) const;

  /// Writes all that a sequence holds, with the bytes that the CPU's cache would write
  /// (page/saved_sequence.hpp): either loads what the other saved. To give pages to others and come
  /// back: save, close, load. Learns from the device what it holds, as refresh() does; waits for the
  /// stream.
  ///
  /// image  saved_bytes() bytes at a multiple of 16, of one allocation that host and device reach:
  ///        pinned, or managed while no other kernel runs where that forbids the host to touch it
  /// Fails  InvalidArgument (handle, another size or kind of image, a sequence that changes meanwhile),
  ///        or if layers differ in length; the image may be written in part then
  /// Cost   one kernel a layer, as fast as the image takes bytes; it sums up the checksum, too
  Status save(SequenceId id, std::span<std::byte> image, cudaStream_t stream = nullptr);

  /// A new sequence that holds what a saved one did and goes on as that would: see kvtilt::KVCache. It
  /// is reserved for `tokens` tokens, or for those it holds if that is more.
  ///
  /// image  of save(), of either cache, whole, of the same shape, plan, page_tokens, sink_tokens and
  ///        recent_tokens; memory as for save()
  /// Fails  as open and reserve do; Corrupt (cut off, damaged, no saved sequence), Unsupported
  ///        (another version), InvalidArgument (of another cache, another kind of memory)
  /// Cost   two kernels a layer, as fast as the image gives bytes, and a look at metadata and 16-bit
  ///        tokens by the host. Waits for the stream: the checksum comes out of the kernels, and what
  ///        was damaged is closed again
  Result<SequenceId> load(std::span<const std::byte> image, std::int64_t tokens = 0,
                          cudaStream_t stream = nullptr);

  /// Returns the pages of a sequence to the cache. Its slot serves the next sequence: a graph whose batch
  /// still names it must be given another batch before it is replayed then.
  Status close(SequenceId id, cudaStream_t stream = nullptr);

  /// Sequences for append and attention. A graph that was captured with a batch reads `memory` when it
  /// is replayed: another batch in the same memory, of as many sequences or fewer, is what it then
  /// serves. Sequences that it lacks grow no more, and get zeros and -inf, or sink logits, from
  /// attention, as empty ones do. Order the call with replays that are queued, and tell note_appended()
  /// of the new batch.
  ///
  /// memory  device, at least ids.size() numbers; belongs to the batch as long as it is used. What is
  ///         left of it becomes -1: nobody. Attention takes batches of up to 1024
  Result<SequenceBatch> batch(std::span<const SequenceId> ids, std::span<std::int32_t> memory,
                              cudaStream_t stream = nullptr);
  /// A batch of one needs no memory; a graph that was captured with it serves the slot for ever.
  Result<SequenceBatch> batch(SequenceId id) const;
  /// Nobody, in as many places as `memory` has numbers: what a graph is captured with before there are
  /// sequences. What batch() then writes into the same memory is served by replays.
  Result<SequenceBatch> empty_batch(std::span<std::int32_t> memory, cudaStream_t stream = nullptr);

  /// Adds tokens to one layer of every sequence of a batch; seals pages as they fill. Keys arrive
  /// after RoPE. May be captured: then the numbers in device memory count when it is replayed, and
  /// note_appended() tells the host of each replay.
  ///
  /// keys    device, [rows, kv_heads, key_dim], channels contiguous, f32, f16 or bf16; rounded to fp16
  /// values  device, [rows, kv_heads, value_dim]
  /// indptr  device, [sequences + 1]: rows indptr[i] to indptr[i + 1] - 1 are sequence i's; ascends,
  ///         from 0 or more to the number of rows at most. Null: as many for each
  /// tokens  host: the numbers of tokens that indptr holds. Empty: not known, the host is not told.
  ///         Not read without indptr
  /// Fails   InvalidArgument (shapes, handles, layer), OutOfCapacity (reserve more, as far as the
  ///         host knows); then nothing is queued. NaN is stored as 0 and what is too large as the
  ///         largest that the recipe holds; poll() names it, and a sequence that had no page left
  ///         and was not appended to. Where indptr cannot be meant, nothing is appended to any, and
  ///         poll() says so. Of what only the device refuses the host learns by refresh()
  /// Cost    one kernel: a small one where no sequence gets a page of tokens, else one that shares
  ///         out pages. `tokens` decides; without it, and without as many for each, the number of rows.
  ///         One more where pages that are another's, too, leave a window
  Status append(const SequenceBatch& batch, int layer, const TensorView& keys,
                const TensorView& values, const std::int32_t* indptr,
                std::span<const std::int32_t> tokens, cudaStream_t stream = nullptr);
  Status append(const SequenceBatch& batch, int layer, const TensorView& keys,
                const TensorView& values, cudaStream_t stream = nullptr);
  Status append(SequenceId id, int layer, const TensorView& keys, const TensorView& values,
                cudaStream_t stream = nullptr);

  /// Copies the tokens at positions `first` to first + n - 1 out of one layer, with the bits of
  /// kvtilt::unpack. May be captured.
  ///
  /// keys    device, receives [n, kv_heads, key_dim], channels contiguous, f32, f16 or bf16; {}: not wanted
  /// values  device, receives [n, kv_heads, value_dim], likewise
  /// Fails   InvalidArgument (shapes, handle, layer, more than 2^24 tokens), before anything is queued.
  ///         Rows of positions that were not appended, were removed or freed are left alone, and poll()
  ///         tells
  Status unpack(SequenceId id, int layer, std::int64_t first, const MutableTensorView& keys,
                const MutableTensorView& values, cudaStream_t stream = nullptr) const;

  /// What kernels see of a layer. Valid as long as the cache, whatever happens to sequences.
  Result<LayerStorage> view(int layer) const;

  /// A replayed graph has appended tokens[i] tokens to sequence i of a batch, in all layers, or cut
  /// it to lengths[i]. In the order in which it did, one call for each time that all layers were
  /// appended to or cut: told as one, pages of a window may be others than the host believes, and the
  /// device refuses to fork them until refresh().
  ///
  /// stream  behind the replay: pages that are another's, too, and that the host lets go of here, the
  ///         device then lets go of as well, if it has not
  /// Fails  InvalidArgument (handles, sizes, negative numbers, lengths that a window forbids),
  ///        OutOfCapacity (more than is reserved in some layer of some sequence); then nothing changes,
  ///        though the device may have taken the rest: refresh() the batch's sequences
  Status note_appended(const SequenceBatch& batch, std::span<const std::int32_t> tokens,
                       cudaStream_t stream);
  Status note_truncated(const SequenceBatch& batch, std::span<const std::int64_t> lengths,
                        cudaStream_t stream);

  /// Tokens that append takes before it seals a page of this layer: see kvtilt::KVCache. As the host
  /// knows it: without what a graph appended since and nobody told.
  Result<std::int64_t> tokens_before_seal(SequenceId id, int layer) const;

  /// Pages of a layer that no sequence has reserved.
  Result<std::int64_t> free_pages(int layer) const;
  /// Tokens that a sequence can hold in all layers before it has to reserve again, as the host knows
  /// it; max_sequence_tokens at most.
  Result<std::int64_t> reserved_tokens(SequenceId id) const;

  /// Tokens in one layer, and in the shortest layer that keeps a cache, as the host knows it.
  Result<std::int64_t> length(SequenceId id, int layer) const;
  Result<std::int64_t> length(SequenceId id) const;
  /// As the device knows it. Waits for the stream.
  Result<std::int64_t> length(SequenceId id, int layer, cudaStream_t stream) const;

  /// Learns from the device what a sequence holds, for appends that nobody told. Waits for the
  /// stream, twice.
  Status refresh(SequenceId id, cudaStream_t stream);

  /// The first thing that went wrong on the device since the last poll, or Ok. Waits for the stream.
  /// What was refused comes first; if numbers were repaired as well, the next poll tells.
  ///
  /// record  if not null, receives the same as numbers: whose request failed, where and how often.
  ///         Code 0: nothing did. `sequence` is a SequenceId's slot, but for an engine's tables and for
  ///         indptr (both Corrupt), where it is the place in the batch
  Status poll(cudaStream_t stream, DeviceRecord* record = nullptr);

  /// Bytes of one sequence, and of all together, as the host knows it; reserved_bytes is all of the
  /// device memory.
  Result<MemoryReport> memory(SequenceId id) const;
  [[nodiscard]] MemoryReport memory() const;

  /// 8 x bytes of a full page / its unpadded elements, over all layers.
  [[nodiscard]] double page_bits() const;

  [[nodiscard]] int layers() const { return static_cast<int>(storages_.size()); }

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
    return {reinterpret_cast<const LayerStorage*>(memory_.data() + layout_.storages), layers()};
  }
  [[nodiscard]] SavedResult* saved_result() const {
    return reinterpret_cast<SavedResult*>(memory_.data() + layout_.saved);
  }
  [[nodiscard]] const std::int32_t* device_slots() const {
    return reinterpret_cast<const std::int32_t*>(memory_.data() + layout_.slots);
  }
  /// After a call that the book knows of: the device keeps no page that it lost, in layers `first` to
  /// last - 1, and others may be given them.
  Status let_go(std::span<const SequenceId> ids, int first, int last, cudaStream_t stream);
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
  std::vector<LayerStorage> storages_;
  std::vector<PageRun> given_;        ///< of one call
  std::vector<std::int32_t> counts_;  ///< of one call
};

}  // namespace kvtilt::cuda

#include <kvtilt/cuda/cache/kv_cache.inl>
#include <kvtilt/cuda/cache/kv_cache_saved.inl>
#include <kvtilt/cuda/cache/kv_cache_tokens.inl>
