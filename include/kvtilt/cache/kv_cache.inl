// SPDX-License-Identifier: MIT
// Members of KVCache that give and take memory; included by kv_cache.hpp.

namespace kvtilt {

template <class FormatList>
Result<KVCache> KVCache::create(const CacheShape& shape, const Plan& plan,
                                const CacheOptions& options) {
  KVTILT_RETURN_IF_ERROR(check_options(options));
  BlockPools pools(options.allocator, options.page_memory);
  Result<std::vector<LayerStore>> stores =
      make_layer_stores<FormatList>(shape, plan, options, pools);
  if (!stores) return std::move(stores).take_status();
  Result<Isa> isa = active_isa(options.isa);
  if (!isa) return std::move(isa).take_status();
  return KVCache(options, cpu::kernels<FormatList>(*isa), *std::move(stores), std::move(pools));
}

inline Result<KVCache::Sequence*> KVCache::find(SequenceId id) const {
  if (id.slot < slots_.size() && id.generation != 0) {
    const Slot& slot = slots_[id.slot];
    if (slot.sequence != nullptr && slot.generation == id.generation) return slot.sequence.get();
  }
  return Status::error(ErrorCode::InvalidArgument,
                       "sequence %u (generation %u) is not open in this cache", id.slot,
                       id.generation);
}

inline Result<KVCache::Sequence*> KVCache::find(SequenceId id, int layer) const {
  Result<Sequence*> sequence = find(id);
  if (!sequence) return sequence;
  if (layer < 0 || layer >= layers())
    return Status::error(ErrorCode::InvalidArgument, "layer %d does not exist: the cache has %d",
                         layer, layers());
  if (stores_[static_cast<std::size_t>(layer)].shape.kv_heads == 0)
    return Status::error(ErrorCode::InvalidArgument, "layer %d keeps no cache (kv_heads is 0)",
                         layer);
  return sequence;
}

/// Makes a sequence without an id (see adopt). OutOfCapacity if no slot is free, or OutOfMemory.
inline Result<std::unique_ptr<KVCache::Sequence>> KVCache::new_sequence() const {
  if (std::none_of(slots_.begin(), slots_.end(),
                   [](const Slot& slot) { return slot.sequence == nullptr; }))
    return Status::error(ErrorCode::OutOfCapacity, "all %zu sequences of this cache are open",
                         slots_.size());
  auto sequence = std::unique_ptr<Sequence>(new (std::nothrow) Sequence);
  if (sequence != nullptr)
    sequence->layers.reset(new (std::nothrow) std::optional<SequenceLayer>[stores_.size()]);
  if (sequence == nullptr || sequence->layers == nullptr)
    return Status::error(ErrorCode::OutOfMemory, "no memory for another sequence");
  for (std::size_t layer = 0; layer < stores_.size(); ++layer)
    sequence->layers[layer].emplace(stores_[layer].placement, options_.allocator);
  return Result<std::unique_ptr<Sequence>>(std::move(sequence));
}

inline SequenceId KVCache::adopt(std::unique_ptr<Sequence> sequence) {
  std::size_t index = 0;
  while (slots_[index].sequence != nullptr) ++index;
  Slot& slot = slots_[index];
  slot.sequence = std::move(sequence);
  if (++slot.generation == 0) slot.generation = 1;  // 0 means no sequence
  return SequenceId{static_cast<std::uint32_t>(index), slot.generation};
}

inline Result<SequenceId> KVCache::open() {
  const std::lock_guard<std::mutex> lock(*mutex_);
  Result<std::unique_ptr<Sequence>> sequence = new_sequence();
  if (!sequence) return std::move(sequence).take_status();
  return adopt(*std::move(sequence));
}

/// Bytes of page tables that `sequence` lacks for needs_; SIZE_MAX if the sum overflows.
inline std::size_t KVCache::missing_table_bytes(const Sequence& sequence) const {
  std::size_t bytes = 0;
  for (std::size_t layer = 0; layer < stores_.size(); ++layer)
    if (stores_[layer].shape.kv_heads > 0)
      bytes = saturating_add(bytes, sequence.layer(layer).missing_table_bytes(needs_[layer]));
  return bytes;
}

inline bool KVCache::reserve_tables(Sequence& sequence) {
  bool room = true;
  for (std::size_t layer = 0; room && layer < stores_.size(); ++layer) {
    if (stores_[layer].shape.kv_heads == 0) continue;
    SequenceLayer& own = sequence.layer(layer);
    table_bytes_ -= own.reserved_table_bytes();
    room = own.reserve_tables(needs_[layer]);
    table_bytes_ += own.reserved_table_bytes();
  }
  return room;
}

/// Whether max_bytes and page_memory have room once `returned` bytes of blocks are given back.
inline bool KVCache::within_limits(std::size_t block_bytes, std::size_t table_bytes,
                                   std::size_t returned) const {
  const std::size_t more = saturating_add(block_bytes, table_bytes);
  const std::size_t present = reserved_bytes() - returned;
  const Arena* arena = pools_.arena();
  return (options_.max_bytes == 0 || more == 0 ||
          (present <= options_.max_bytes && more <= options_.max_bytes - present)) &&
         (arena == nullptr || block_bytes <= arena->free_bytes() + returned);
}

/// Gives idle slabs (without a block in use) back if what `sequence` lacks fits only then. OutOfMemory
/// if it exceeds max_bytes or page_memory even so; nothing has changed then.
inline Status KVCache::make_room(const Sequence& sequence, std::int64_t tokens) {
  const std::size_t blocks = pools_.missing_bytes();
  const std::size_t tables = missing_table_bytes(sequence);
  if (within_limits(blocks, tables, 0)) return {};
  if (within_limits(pools_.missing_bytes_without_idle(), tables, pools_.idle_bytes())) {
    pools_.give_back();
    return {};
  }
  const std::size_t other = pools_.unwanted_bytes();
  const Arena* arena = pools_.arena();
  if (arena != nullptr && blocks > arena->free_bytes())
    return Status::error(ErrorCode::OutOfMemory,
                         "%lld tokens need %zu bytes of page_memory more; %zu of its %zu are free, "
                         "%zu more in free blocks of other sizes",
                         static_cast<long long>(tokens), blocks, arena->free_bytes(), arena->size(),
                         other);
  return Status::error(ErrorCode::OutOfMemory,
                       "%lld tokens need %zu bytes more; %zu of the limit of %zu are taken, %zu of "
                       "them by open sequences and %zu by free blocks of other sizes",
                       static_cast<long long>(tokens), saturating_add(blocks, tables),
                       reserved_bytes(), options_.max_bytes, reserved_bytes() - pools_.free_bytes(),
                       other);
}

/// Gives a sequence all blocks in needs_ and the tables for them, or no block at all.
inline Status KVCache::provide(Sequence& sequence, std::int64_t tokens) {
  pools_.want_nothing();
  for (std::size_t layer = 0; layer < stores_.size(); ++layer)
    stores_[layer].want(needs_[layer], pools_);
  KVTILT_RETURN_IF_ERROR(make_room(sequence, tokens));
  const std::size_t more = saturating_add(pools_.missing_bytes(), missing_table_bytes(sequence));
  bool tables = false;
  const auto take = [&] { return (tables = reserve_tables(sequence)) && pools_.grow(); };
  if (!take() && !(pools_.give_back() && make_room(sequence, tokens).ok() && take())) {
    const Arena* arena = pools_.arena();
    if (tables && arena != nullptr)
      return Status::error(ErrorCode::OutOfMemory,
                           "%lld tokens need %zu bytes of page_memory more; %zu of its %zu are "
                           "free, but the pieces between slabs in use are too small",
                           static_cast<long long>(tokens), pools_.missing_bytes(),
                           arena->free_bytes(), arena->size());
    return Status::error(ErrorCode::OutOfMemory,
                         "the allocator refused the %zu bytes that %lld tokens need", more,
                         static_cast<long long>(tokens));
  }
  for (std::size_t layer = 0; layer < stores_.size(); ++layer) {
    const BlockCounts& needs = needs_[layer];
    SequenceLayer& own = sequence.layer(layer);
    if (needs.sinks > 0) own.give_sink_block(pool(layer, PageKind::Sinks).acquire());
    for (std::size_t i = 0; i < needs.tail; ++i)
      own.give_tail_block(pool(layer, PageKind::Tail).acquire());
    for (std::size_t i = 0; i < needs.sealed; ++i)
      own.give_page(pool(layer, PageKind::Sealed).acquire());
  }
  sequence.capacity = std::max(sequence.capacity, tokens);
  return {};
}

inline Status KVCache::reserve(SequenceId id, std::int64_t tokens) {
  Result<Sequence*> found = find(id);
  if (!found) return std::move(found).take_status();
  KVTILT_RETURN_IF_ERROR(check_tokens(tokens));
  const std::lock_guard<std::mutex> lock(*mutex_);
  for (std::size_t layer = 0; layer < stores_.size(); ++layer)
    needs_[layer] = stores_[layer].shape.kv_heads == 0 ? BlockCounts{}
                                                       : (*found)->layer(layer).missing_for(tokens);
  return provide(**found, tokens);
}

/// The length that all layers share; InvalidArgument ("cannot <verb>") if they differ.
inline Result<std::int64_t> KVCache::common_length(const Sequence& sequence,
                                                   const char* verb) const {
  std::int64_t length = -1;
  for (std::size_t layer = 0; layer < stores_.size(); ++layer) {
    if (stores_[layer].shape.kv_heads == 0) continue;
    const std::int64_t own = sequence.layer(layer).length();
    if (length >= 0 && own != length)
      return Status::error(ErrorCode::InvalidArgument,
                           "cannot %s: layer %zu holds %lld tokens, an earlier one %lld; "
                           "truncate to the shorter length first",
                           verb, layer, static_cast<long long>(own),
                           static_cast<long long>(length));
    length = own;
  }
  return std::max<std::int64_t>(length, 0);
}

inline Result<SequenceId> KVCache::fork(SequenceId id, std::int64_t tokens) {
  Result<Sequence*> found = find(id);
  if (!found) return std::move(found).take_status();
  const Sequence& parent = **found;
  Result<std::int64_t> length = common_length(parent, "fork");
  if (!length) return std::move(length).take_status();
  KVTILT_RETURN_IF_ERROR(check_tokens(tokens));
  tokens = std::max(tokens, *length);

  const std::lock_guard<std::mutex> lock(*mutex_);
  Result<std::unique_ptr<Sequence>> made = new_sequence();
  if (!made) return std::move(made).take_status();
  Sequence& child = **made;
  for (std::size_t layer = 0; layer < stores_.size(); ++layer)
    needs_[layer] =
        stores_[layer].shape.kv_heads == 0 ? BlockCounts{} : parent.layer(layer).fork_needs(tokens);
  if (Status given = provide(child, tokens); !given.ok()) {
    release_blocks(child);
    return Result<SequenceId>(std::move(given));
  }
  for (std::size_t layer = 0; layer < stores_.size(); ++layer)
    child.layer(layer).copy_from(parent.layer(layer), stores_[layer].layout(PageKind::Sinks).bytes,
                                 stores_[layer].layout(PageKind::Tail).bytes);
  return adopt(*std::move(made));
}

inline void KVCache::release_blocks(Sequence& sequence) {
  for (std::size_t layer = 0; layer < stores_.size(); ++layer) {
    if (stores_[layer].shape.kv_heads == 0) continue;
    table_bytes_ -= sequence.layer(layer).reserved_table_bytes();
    sequence.layer(layer).truncate(0);  // drops its references to shared pages
    sequence.layer(layer).for_each_block(
        [&](const Block& block) { pool(layer, PageKind::Sinks).release(block); },
        [&](const Block& block) { pool(layer, PageKind::Tail).release(block); },
        [&](const Block& page) { pool(layer, PageKind::Sealed).release(page); });
  }
}

inline Status KVCache::close(SequenceId id) {
  Result<Sequence*> found = find(id);
  if (!found) return std::move(found).take_status();
  const std::lock_guard<std::mutex> lock(*mutex_);
  release_blocks(**found);
  slots_[id.slot].sequence.reset();
  return {};
}

}  // namespace kvtilt
