// SPDX-License-Identifier: MIT
/// The KV cache: many sequences of one model, with keys and values in the bit widths of a plan.
#pragma once

#include <kvtilt/cache/block_pools.hpp>
#include <kvtilt/cache/layer_store.hpp>
#include <kvtilt/cache/options.hpp>
#include <kvtilt/cache/sequence_layer.hpp>
#include <kvtilt/cache/unpack.hpp>
#include <kvtilt/core/memory_report.hpp>
#include <kvtilt/core/sequence_id.hpp>
#include <kvtilt/cpu/kernels.hpp>
#include <kvtilt/page/page_range.hpp>
#include <kvtilt/page/saved_reader.hpp>
#include <kvtilt/page/saved_writer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace kvtilt {

/// A KV cache in host memory. A sequence keeps, in each layer, its first tokens ("sinks") and its
/// newest ("tail") in 16-bit blocks; full blocks in between are sealed: quantized into pages.
///
/// Threads: one thread at a time may call members for a given sequence; any number may read its views
/// until a call changes the sequence (LayerView). Calls for different sequences, open(), and memory()
/// even of a sequence that is being written, may run concurrently.
///
/// Only reserve, fork and load take memory from the allocator or from page_memory. create (a few KiB
/// per layer), open (some 300 bytes per layer) and plan_memory() use operator new; an exception that it
/// throws is not caught.
class KVCache {
 public:
  /// Makes a cache without sequences, after checking every argument; allocates nothing for tokens.
  ///
  /// FormatList  code widths to compile kernels for; compile time grows with its length
  template <class FormatList = AllFormats>
  static Result<KVCache> create(const CacheShape& shape, const Plan& plan,
                                const CacheOptions& options = {});

  KVCache(KVCache&& other) noexcept = default;
  /// Ends this cache, its sequences and views, and puts the other in its place.
  KVCache& operator=(KVCache&& other) noexcept {
    if (this != &other) {
      std::destroy_at(this);
      std::construct_at(this, std::move(other));
    }
    return *this;
  }

  /// Opens an empty sequence. Fails with OutOfCapacity at max_sequences, or OutOfMemory.
  Result<SequenceId> open();

  /// Reserves memory for `tokens` tokens in every layer of a sequence, those it already holds
  /// included; up to that length append does not run out, unless a truncation cuts a sealed page or a
  /// fork comes to share pages. With those, call reserve(id, length + n) before each forward pass of n
  /// tokens: it is cheap if nothing is missing. Never shrinks.
  ///
  /// Fails  InvalidArgument (handle, tokens); OutOfMemory. At a limit (max_bytes, size of page_memory)
  ///        nothing has changed. If the allocator returns null, or the free parts of page_memory are
  ///        too short for a slab, page tables that have grown stay larger and slabs without a block in
  ///        use may have been freed; all else is as before
  /// Cost   copies the page tables that grow, some 50 bytes per page; no token moves. Exactly the
  ///        missing memory is allocated, in slabs of up to 32 MiB per block size. Reserving page by
  ///        page makes many small slabs and copies the tables each time, and only slabs of 2 MiB or
  ///        more get huge pages (default_allocator): reserve the longest expected context at once, or
  ///        double
  Status reserve(SequenceId id, std::int64_t tokens);

  /// Appends tokens to one layer; seals each full block once recent_tokens newer tokens follow it.
  ///
  /// keys    [tokens, kv_heads, key_dim] after RoPE, channels contiguous, f32, f16 or bf16; rounded
  ///         to fp16
  /// values  [tokens, kv_heads, value_dim], likewise; {} if they are in the keys
  /// Fails   InvalidArgument (shapes, handle, layer), InvalidValue (NaN, infinity, too large; names
  ///         layer, token, head and channel), OutOfCapacity (reserve more); nothing has changed then
  /// Cost    one pass to check, one to store, one quantization per full page; no allocation
  Status append(SequenceId id, int layer, const TensorView& keys, const TensorView& values);

  /// Removes every token from position `length` on, in all layers; a layer that holds fewer stays as
  /// it is. Inside the tail this undoes append exactly, except that a page sealed in between stays
  /// sealed (see tokens_before_seal). A cut inside a sealed page shortens that page and can cost one
  /// page of the reservation: reserve again if append fails with OutOfCapacity. Unless it empties the
  /// page, each such cut leaves one that is not full: a sequence cut again and again grows by a page each
  /// time. Fails with InvalidArgument, changing nothing, if a window has freed tokens that the next one
  /// would see.
  Status truncate(SequenceId id, std::int64_t length);

  /// Drops the sealed pages that hold exactly the positions `from` to `to` - 1, in all layers;
  /// positions that a layer's window has already freed are skipped. Later tokens keep their positions
  /// and length() does not change. Fails with InvalidArgument, changing nothing, if in some layer no
  /// run of sealed pages covers exactly this range; the message names the nearest that exists.
  ///
  /// Context shift (later tokens move up into the gap) without touching a stored key: attend to the
  /// tokens in front of the gap with queries that RoPE turns back by as many positions as were removed
  /// (AttendOptions::end_position at the gap, causal = false), to all others with plain queries
  /// (first_position behind it), and merge(). For that a sequence has one gap, which further removals
  /// extend, and neither windows nor ALiBi, which count positions as if nothing were missing. New tokens
  /// go on at position length(): compute RoPE's angles in double, as they get large.
  Status remove(SequenceId id, std::int64_t from, std::int64_t to);

  /// Opens a second sequence with the same tokens; it shares the sealed pages and copies tail and
  /// sinks. It is reserved for `tokens` tokens, or for its length if that is more. A shared page can
  /// be reused only once every sequence has dropped it: one that drops a page which another still
  /// holds (truncation, window) may have to reserve again. Fails as open and reserve do, and with
  /// InvalidArgument if layers differ in length.
  Result<SequenceId> fork(SequenceId id, std::int64_t tokens = 0);

  /// Bytes that save() writes for a sequence in its current state.
  Result<std::size_t> saved_bytes(SequenceId id) const;

  /// Writes all that a sequence holds to `image`; pages are copied as stored. The format is that of
  /// page/saved_sequence.hpp, the same on every machine.
  ///
  /// image  saved_bytes() bytes, any alignment
  /// Fails  InvalidArgument (handle, size of the image, layers that differ in length)
  /// Cost   one copy and one checksum of the bytes
  Status save(SequenceId id, std::span<std::byte> image) const;

  /// Opens a sequence from an image of save(). It behaves as the saved sequence would have: later
  /// appends and attention give the same bits. It is reserved for `tokens` tokens, or for its length
  /// if that is more, and shares no page, even if the saved sequence did.
  ///
  /// image  all bytes that save() wrote, from a cache of the same shape, plan, page_tokens, sink_tokens,
  ///        recent_tokens and fingerprint
  /// Fails  as open and reserve do; Corrupt (truncated, damaged, not a saved sequence), Unsupported
  ///        (another format version), InvalidArgument (from a different cache; names what differs)
  /// Cost   one checksum and one copy of the bytes. The checksum finds damage, not forgery: a forged
  ///        image causes no access out of bounds, but the tokens in it are trusted
  Result<SequenceId> load(std::span<const std::byte> image, std::int64_t tokens = 0);

  /// Closes a sequence; the cache keeps its blocks for later sequences. They go back to the allocator
  /// when a reservation would not fit otherwise (CacheOptions::max_bytes), or with the cache.
  Status close(SequenceId id);

  /// Returns one layer of a sequence as attend() takes it, valid until the sequence changes.
  Result<LayerView> view(SequenceId id, int layer) const;

  /// Copies the tokens at positions `first` to first + n - 1 out of one layer: unpack() of its view
  /// (unpack.hpp). Fails as that does, and for a handle or layer that does not exist.
  ///
  /// keys    receives [n, kv_heads, key_dim], channels contiguous, f32, f16 or bf16; {}: skipped
  /// values  receives [n, kv_heads, value_dim], likewise
  Status unpack(SequenceId id, int layer, std::int64_t first, const MutableTensorView& keys,
                const MutableTensorView& values) const;

  /// How many tokens can be appended to this layer before a page is sealed. While none is sealed,
  /// attend gives every query the same bits however many tokens were appended at once, and truncate
  /// undoes the appends exactly: a speculative draft of up to this length never changes results.
  Result<std::int64_t> tokens_before_seal(SequenceId id, int layer) const;

  /// Tokens in one layer; without `layer`, in the shortest layer that keeps a cache.
  Result<std::int64_t> length(SequenceId id, int layer) const;
  Result<std::int64_t> length(SequenceId id) const;

  /// Bytes of one sequence (reserved_bytes is 0), or of all together. The effect of a concurrent call
  /// that changes a sequence may be counted in part. Cost: time that grows with sequences and layers,
  /// not with tokens; meanwhile open, reserve, fork, load and close wait.
  Result<MemoryReport> memory(SequenceId id) const;
  [[nodiscard]] MemoryReport memory() const;

  /// Average bits per element of full pages: 8 * bytes / unpadded elements, over all layers.
  [[nodiscard]] double page_bits() const;

  [[nodiscard]] Isa isa() const { return kernels_->isa; }
  [[nodiscard]] int layers() const { return static_cast<int>(stores_.size()); }

 private:
  struct Sequence {
    std::unique_ptr<std::optional<SequenceLayer>[]> layers;  ///< not a vector: open() never throws
    std::int64_t capacity = 0;

    [[nodiscard]] SequenceLayer& layer(std::size_t index) const { return *layers[index]; }
  };
  struct Slot {
    std::unique_ptr<Sequence> sequence;
    std::uint32_t generation = 0;
  };

  KVCache(const CacheOptions& options, const cpu::Kernels* kernels, std::vector<LayerStore> stores,
          BlockPools pools)
      : options_(options),
        kernels_(kernels),
        stores_(std::move(stores)),
        pools_(std::move(pools)),
        slots_(static_cast<std::size_t>(options.max_sequences)),
        needs_(stores_.size()),
        mutex_(std::make_unique<std::mutex>()) {}

  Result<Sequence*> find(SequenceId id) const;
  Result<Sequence*> find(SequenceId id, int layer) const;
  Status check_append(const Sequence& sequence, int layer, const TensorView& keys,
                      const TensorView& values) const;
  BlockPool& pool(std::size_t layer, PageKind kind) { return pools_[stores_[layer].pool(kind)]; }
  Result<std::int64_t> common_length(const Sequence& sequence, const char* verb) const;
  std::size_t write_saved(const Sequence& sequence, std::int64_t length,
                          std::span<std::byte> image) const;
  Result<std::unique_ptr<Sequence>> new_sequence() const;
  SequenceId adopt(std::unique_ptr<Sequence> sequence);
  [[nodiscard]] std::size_t reserved_bytes() const {
    return table_bytes_ + pools_.allocated_bytes();
  }
  [[nodiscard]] std::size_t missing_table_bytes(const Sequence& sequence) const;
  [[nodiscard]] bool within_limits(std::size_t block_bytes, std::size_t table_bytes,
                                   std::size_t returned) const;
  Status make_room(const Sequence& sequence, std::int64_t tokens);
  bool reserve_tables(Sequence& sequence);
  Status provide(Sequence& sequence, std::int64_t tokens);
  void release_blocks(Sequence& sequence);
  void add_usage(const Sequence& sequence, MemoryReport& report) const;

  CacheOptions options_;
  const cpu::Kernels* kernels_;
  std::vector<LayerStore> stores_;
  BlockPools pools_;
  std::vector<Slot> slots_;            ///< never grows: a lookup needs no lock
  std::vector<BlockCounts> needs_;     ///< by layer: what provide() is to supply
  std::size_t table_bytes_ = 0;        ///< reserved for the tables of all sequences
  std::unique_ptr<std::mutex> mutex_;  ///< guards all but stores_ and lookups of open slots
};

}  // namespace kvtilt

#include <kvtilt/cache/kv_cache.inl>
#include <kvtilt/cache/kv_cache_saved.inl>
#include <kvtilt/cache/kv_cache_tokens.inl>
