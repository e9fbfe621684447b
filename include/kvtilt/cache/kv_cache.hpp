// SPDX-License-Identifier: MIT
/// The cache: many sequences of one model, keys and values in the bits a plan gives them.
#pragma once

#include <kvtilt/cache/block_pools.hpp>
#include <kvtilt/cache/layer_store.hpp>
#include <kvtilt/cache/memory_report.hpp>
#include <kvtilt/cache/options.hpp>
#include <kvtilt/cache/page_range.hpp>
#include <kvtilt/cache/saved_reader.hpp>
#include <kvtilt/cache/saved_writer.hpp>
#include <kvtilt/cache/sequence_id.hpp>
#include <kvtilt/cache/sequence_layer.hpp>
#include <kvtilt/cache/unpack.hpp>
#include <kvtilt/cpu/kernels.hpp>

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

/// Threads: calls for one sequence belong to one thread at a time, and views of it may be read by any
/// number until a call changes it (LayerView); calls for different sequences, open, and memory() even
/// of a sequence that is being written, may come from anywhere at any time.
///
/// Memory of the allocator, and page_memory, is taken by reserve, fork and load alone. What create makes
/// beside it, a few KiB a layer, and what open makes, some 300 bytes a layer, comes from operator new; so
/// does what plan_memory() makes. An operator new that throws is not caught.
class KVCache {
 public:
  /// Checks everything that can be wrong with the arguments; nothing is allocated for tokens yet.
  ///
  /// FormatList  the widths to carry kernels for; compile time grows with its length
  template <class FormatList = AllFormats>
  static Result<KVCache> create(const CacheShape& shape, const Plan& plan,
                                const CacheOptions& options = {});

  KVCache(KVCache&& other) noexcept = default;
  KVCache& operator=(KVCache&&) = delete;
  ~KVCache();

  /// A new, empty sequence. Fails with OutOfCapacity at max_sequences, or OutOfMemory.
  Result<SequenceId> open();

  /// Makes room for `tokens` tokens in all layers of a sequence, those it holds included: append cannot
  /// run out before that, unless a truncation cuts a sealed page or pages come to be shared by a fork.
  /// Where those happen, call reserve(id, length + n) before each forward pass of n tokens: it is
  /// cheap if nothing is missing. Never shrinks.
  ///
  /// Fails  OutOfMemory by a limit (max_bytes, page_memory), then nothing has changed; or because the
  ///        allocator refused, then page tables that grew before it did stay as large, memory that no
  ///        sequence used may have gone back to it, and all else is as before
  /// Cost   a copy of the page tables that grow, some 50 bytes per page; no token moves. What is
  ///        missing is taken exactly, in pieces of up to 32 MiB per size of block: whoever reserves
  ///        page by page gets many small pieces, and copies tables each time. Huge pages back pieces
  ///        of 2 MiB and more alone (default_allocator). So reserve the longest expected context at
  ///        once, or double
  Status reserve(SequenceId id, std::int64_t tokens);

  /// Adds tokens to one layer; seals pages as they fill. Keys arrive after RoPE.
  ///
  /// keys    [tokens, kv_heads, key_dim], channels contiguous, f32, f16 or bf16; rounded to fp16
  /// values  [tokens, kv_heads, value_dim]
  /// Fails   InvalidArgument (shapes, handle, layer), InvalidValue (NaN, infinity, too large; names
  ///         layer, token, head and channel), OutOfCapacity (reserve more); then nothing changed
  /// Cost    one pass to check, one to store, one quantization per full page; no allocation
  Status append(SequenceId id, int layer, const TensorView& keys, const TensorView& values);

  /// Forgets every token from `length` on, in all layers; layers that hold fewer keep what they
  /// hold. Exact inside the tail, except that a page sealed since stays sealed (tokens_before_seal
  /// tells when none is). A cut inside a sealed page leaves that page shorter, and can cost a page
  /// of the reservation: reserve again if append says so. Fails with InvalidArgument, before
  /// anything changes, if a window has freed tokens that the next one would see.
  Status truncate(SequenceId id, std::int64_t length);

  /// Drops the sealed pages that hold exactly the positions `from` to `to`-1, in all layers: what a
  /// layer's window has freed of them is gone already. Later tokens keep their positions, length
  /// stays. Fails with InvalidArgument where a layer's pages do not end there (the message names the
  /// nearest that do), and then changes nothing.
  Status remove(SequenceId id, std::int64_t from, std::int64_t to);

  /// A second sequence with the same tokens: shares sealed pages, copies tail and sinks. It is
  /// reserved for `tokens` tokens, or for those it holds if that is more. Pages stay shared until
  /// both sequences let go of them; one that loses a shared page (truncation, window) may have to
  /// reserve again. Fails as open and reserve do, and if layers differ in length.
  Result<SequenceId> fork(SequenceId id, std::int64_t tokens = 0);

  /// Bytes that save() writes for a sequence as it is.
  Result<std::size_t> saved_bytes(SequenceId id) const;

  /// Writes all that a sequence holds, pages as they are: saved_sequence.hpp is the format, the same
  /// on every machine.
  ///
  /// image  saved_bytes() bytes, any alignment
  /// Fails  InvalidArgument (handle, another size of image), or if layers differ in length
  /// Cost   a copy and a checksum of the bytes
  Status save(SequenceId id, std::span<std::byte> image) const;

  /// A new sequence that holds what a saved one did and goes on as that would: the bits of all that is
  /// appended and attended to later are the same. It is reserved for `tokens` tokens, or for those it
  /// holds if that is more; pages it shared when it was saved are its own.
  ///
  /// image  of save(), whole, of a cache of the same shape, plan, page_tokens, sink_tokens and
  ///        recent_tokens
  /// Fails  as open and reserve do; Corrupt (cut off, damaged, no saved sequence), Unsupported
  ///        (another version), InvalidArgument (of another cache: names what differs)
  /// Cost   a checksum and a copy of the bytes. The checksum is no signature: of forged bytes nothing
  ///        is read or written out of place, but what they say is believed
  Result<SequenceId> load(std::span<const std::byte> image, std::int64_t tokens = 0);

  /// Returns the blocks of a sequence to the cache, for sequences to come. The allocator has them back
  /// when a reservation would not fit otherwise (CacheOptions::max_bytes), or with the cache.
  Status close(SequenceId id);

  /// One layer for attend(). Valid until the sequence changes.
  Result<LayerView> view(SequenceId id, int layer) const;

  /// Copies the tokens at positions `first` to first + n - 1 out of one layer: unpack() of its view
  /// (unpack.hpp). Fails as that does, and for a handle or layer that does not exist.
  ///
  /// keys    receives [n, kv_heads, key_dim], channels contiguous, f32, f16 or bf16; {}: not wanted
  /// values  receives [n, kv_heads, value_dim], likewise
  Status unpack(SequenceId id, int layer, std::int64_t first, const MutableTensorView& keys,
                const MutableTensorView& values) const;

  /// Tokens that append takes before it seals a page of this layer. While none is sealed, attend
  /// gives every query the same bits however many tokens were appended at once, and truncate takes
  /// them back without a trace: a speculative draft this long changes nothing but the speed.
  Result<std::int64_t> tokens_before_seal(SequenceId id, int layer) const;

  /// Tokens in one layer, and in the shortest layer that keeps a cache.
  Result<std::int64_t> length(SequenceId id, int layer) const;
  Result<std::int64_t> length(SequenceId id) const;

  /// Bytes of one sequence (reserved_bytes 0), and of all together. A call that changes a sequence
  /// meanwhile shows in part. Cost: time that grows with sequences and layers, not with tokens, in
  /// which no other sequence is opened, reserved for, forked, loaded or closed.
  Result<MemoryReport> memory(SequenceId id) const;
  [[nodiscard]] MemoryReport memory() const;

  /// 8 x bytes of a full page / its unpadded elements, over all layers.
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
    Sequence* sequence = nullptr;
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
  PagePool& pool(std::size_t layer, PageKind kind) { return pools_[stores_[layer].pool(kind)]; }
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
  std::vector<BlockCounts> needs_;     ///< of provide(): by layer
  std::size_t table_bytes_ = 0;        ///< reserved for the tables of all sequences
  std::unique_ptr<std::mutex> mutex_;  ///< guards all but stores_ and the use of open slots
};

}  // namespace kvtilt

#include <kvtilt/cache/kv_cache.inl>
#include <kvtilt/cache/kv_cache_saved.inl>
#include <kvtilt/cache/kv_cache_tokens.inl>
