// SPDX-License-Identifier: MIT
/// Converts page tables between the forms that engines keep and the cache's own, on the device.
///
///     dense    indices [sequences][stride], and the tokens of each sequence (vLLM)
///     CSR      the indices of all sequences in a row, those of sequence i from indptr[i] to
///              indptr[i + 1] - 1, and the tokens in each one's last page   (FlashInfer)
#pragma once

#include <kvtilt/cuda/cache/device_record.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/page/layout.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Arrays in device memory. Set `lengths` and `stride`, or `indptr` and `last_page_tokens`.
struct EngineTables {
  int sequences = 0;
  const std::int32_t* indices = nullptr;           ///< pages in the engine's pool
  std::int64_t stride = 0;                         ///< dense
  const std::int32_t* lengths = nullptr;           ///< dense: tokens
  const std::int32_t* indptr = nullptr;            ///< CSR: [sequences + 1]
  const std::int32_t* last_page_tokens = nullptr;  ///< CSR: 1 to page_tokens; ignored without pages
  /// [sequences]: tokens behind the pages, which the engine keeps in 16 bits and attends to itself, those
  /// of the queries included. Positions, windows and what drafts see follow from it. Null: none
  const std::int32_t* tail_tokens = nullptr;

  [[nodiscard]] KVTILT_HD bool is_dense() const { return lengths != nullptr; }
};

/// Arrays in device memory that export_tables fills.
struct ExportedTables {
  std::int32_t* indptr;            ///< [sequences + 1]
  std::int32_t* last_page_tokens;  ///< [sequences]
  std::int32_t* indices;
  std::int32_t capacity;  ///< room in indices
};

/// An engine's own pages as a layer, and its sequences as a batch.
struct ImportedLayer {
  LayerView view;
  Batch batch;
};

namespace detail {

struct ImportOffsets {
  std::size_t states;
  std::size_t slots;
  std::size_t tables;
  std::size_t bytes;
};

constexpr ImportOffsets import_offsets(int sequences, int most_pages) {
  const std::size_t count = static_cast<std::size_t>(sequences);
  ImportOffsets offsets{};
  offsets.slots = round_up(count * sizeof(SequenceState), page_alignment);
  offsets.tables = offsets.slots + round_up(count * sizeof(std::int32_t), page_alignment);
  offsets.bytes = offsets.tables + count * static_cast<std::size_t>(most_pages) * sizeof(PageSlot);
  return offsets;
}

}  // namespace detail

/// Bytes of device memory for import_tables, with room for `most_pages` pages of each sequence.
constexpr std::size_t import_workspace_bytes(int sequences, int most_pages) {
  return detail::import_offsets(sequences, most_pages).bytes;
}

/// Describes an engine's own pages as a layer; usable once import_tables' kernel has run.
///
/// layer      a layer of a KVCache with the engine's shape, recipes and page_tokens, which must
///            outlive the result: kernels read its layouts in device memory and write its error
///            record. The result has no sinks and no tail
/// pool       device: quantized pages, one after the other
/// workspace  device, at a multiple of 64: import_workspace_bytes()
inline ImportedLayer imported_layer(const LayerView& layer, std::byte* pool, int sequences,
                                    int most_pages, std::byte* workspace) {
  const detail::ImportOffsets offsets = detail::import_offsets(sequences, most_pages);
  ImportedLayer result{layer, {}};
  LayerView& view = result.view;
  view.sink_tokens = 0;
  view.recent_tokens = 0;
  view.ring_blocks = 1;
  for (const PageKind kind : {PageKind::Sinks, PageKind::Tail})
    view.pool[static_cast<int>(kind)] = nullptr;
  view.pool[static_cast<int>(PageKind::Sealed)] = pool;
  view.states = reinterpret_cast<SequenceState*>(workspace);
  view.tables = reinterpret_cast<PageSlot*>(workspace + offsets.tables);
  view.table_stride = most_pages;
  view.arrivals = nullptr;
  result.batch = {reinterpret_cast<const std::int32_t*>(workspace + offsets.slots), sequences};
  return result;
}

/// Body of a kernel: any number of blocks, each takes a sequence at a time. A sequence with an
/// invalid table is left empty, and recorded.
template <class Threads>
KVTILT_HD void import_tables_body(const Threads& threads, const LayerView& view,
                                  std::int32_t* slots, const EngineTables& tables,
                                  std::int32_t pool_pages) {
  for (int i = threads.block(); i < tables.sequences; i += threads.block_count()) {
    const std::int64_t start = tables.is_dense() ? i * tables.stride : tables.indptr[i];
    std::int64_t tokens = 0;
    std::int64_t pages = 0;
    std::int64_t room = view.table_stride;
    bool sound = true;
    if (tables.is_dense()) {
      tokens = tables.lengths[i];
      pages = (tokens + view.page_tokens - 1) / view.page_tokens;
      room = tables.stride < room ? tables.stride : room;
      sound = tokens >= 0;
    } else {
      pages = tables.indptr[i + 1] - start;
      const std::int32_t last = pages > 0 ? tables.last_page_tokens[i] : 1;
      sound = start >= 0 && last >= 1 && last <= view.page_tokens;
      if (pages > 0) tokens = (pages - 1) * view.page_tokens + last;
    }
    const std::int32_t tail = tables.tail_tokens != nullptr ? tables.tail_tokens[i] : 0;
    sound = sound && pages >= 0 && pages <= room && tail >= 0;
    PageSlot* table = view.table(i);
    std::uint32_t foreign = 0;
    for (std::int64_t page = threads.thread(); sound && page < pages;
         page += threads.thread_count()) {
      const std::int64_t first = page * view.page_tokens;
      const std::int64_t left = tokens - first;
      const std::int32_t index = tables.indices[start + page];
      if (index < 0 || index >= pool_pages) foreign = 1;
      table[page] = {first, index,
                     left < view.page_tokens ? static_cast<std::int32_t>(left) : view.page_tokens};
    }
    if (threads.thread() == 0) view.states[i].page_end = 0;  // counts bad entries until the end
    threads.sync();
    if (foreign != 0)
      (void)threads.atomic_add(reinterpret_cast<std::uint32_t*>(&view.states[i].page_end), 1);
    threads.sync();
    if (threads.thread() == 0) {
      sound = sound && view.states[i].page_end == 0;
      SequenceState state{};
      if (sound) {
        state.length = state.tail_start = tokens;
        state.elsewhere = tail;
        state.page_end = state.page_capacity = static_cast<std::int32_t>(pages);
      } else {
        record_error(threads, view.records,
                     sequence_fault(DeviceFault::BadTable, view.layer, i, tokens));
      }
      view.states[i] = state;
      slots[i] = i;
    }
    threads.sync();
  }
}

/// Body of a kernel: one block. Writes the sealed pages of a batch, without sinks and tails. CSR
/// cannot express a sequence in which a page before the last is not full: it is exported without
/// pages, and recorded; so is one for which `indices` has no room.
template <class Threads>
KVTILT_HD void export_tables_body(const Threads& threads, const LayerView& view, const Batch& batch,
                                  const ExportedTables& out) {
  for (int i = threads.thread(); i < batch.count; i += threads.thread_count()) {
    const std::int32_t slot = batch.slots[i];
    const SequenceState state = view.state(slot);
    const PageSlot* table = view.table(slot);
    std::int32_t pages = state.page_end - state.first_page;
    for (std::int32_t entry = state.first_page; entry + 1 < state.page_end; ++entry)
      if (table[entry].tokens != view.page_tokens) {
        record_error(threads, view.records,
                     sequence_fault(DeviceFault::PageNotFull, view.layer, slot,
                                    table[entry].first_position));
        pages = 0;
        break;
      }
    out.indptr[i + 1] = pages;
    out.last_page_tokens[i] = pages > 0 ? table[state.page_end - 1].tokens : 0;
  }
  threads.sync();
  if (threads.thread() == 0) {
    std::int32_t total = 0;
    out.indptr[0] = 0;
    for (int i = 0; i < batch.count; ++i) {
      const std::int32_t pages = out.indptr[i + 1];
      if (pages > out.capacity - total) {
        record_error(threads, view.records,
                     sequence_fault(DeviceFault::NoRoomForIndices, view.layer, batch.slots[i], 0));
        out.last_page_tokens[i] = 0;
      } else {
        total += pages;
      }
      out.indptr[i + 1] = total;
    }
  }
  threads.sync();
  for (int i = 0; i < batch.count; ++i) {
    const std::int32_t slot = batch.slots[i];
    const PageSlot* table = view.table(slot) + view.state(slot).first_page;
    const std::int32_t first = out.indptr[i];
    for (std::int32_t page = threads.thread(); page < out.indptr[i + 1] - first;
         page += threads.thread_count())
      out.indices[first + page] = table[page].page;
  }
}

}  // namespace kvtilt::cuda
