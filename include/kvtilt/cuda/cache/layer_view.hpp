// SPDX-License-Identifier: MIT
/// All that kernels see of one layer of a device cache: plain data, passed by value. Lengths and
/// page tables are in device memory and change there, so that a captured graph replays as they
/// grow.
#pragma once

#include <kvtilt/page/layer_layouts.hpp>
#include <kvtilt/page/layout.hpp>
#include <kvtilt/page/token_placement.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace kvtilt::cuda {

struct HeadSlices;

/// A page-table entry: a sealed page of a sequence. 16 bytes: one load.
struct PageSlot {
  std::int64_t first_position;  ///< position of its slot 0 in the sequence
  std::int32_t page;            ///< in the layer's pool
  std::int32_t tokens;          ///< slots 0 to tokens - 1 hold tokens
};
static_assert(sizeof(PageSlot) == 16);

/// Where the tokens of one sequence are in one layer. Once it is open, only kernels write this.
struct SequenceState {
  std::int64_t length;         ///< positions 0 to length - 1 were appended
  std::int64_t tail_start;     ///< position of the tail's first token; sinks lie before it
  std::int64_t first_kept;     ///< positions before it were freed, sinks excepted
  std::int32_t first_page;     ///< table entries before it were freed
  std::int32_t page_end;       ///< entries first_page to page_end - 1 hold tokens
  std::int32_t page_capacity;  ///< entries page_end to page_capacity - 1 hold unused pages
  std::int32_t ring_head;      ///< tail block at which the tail starts
  std::int32_t shared_end;     ///< entries before it may hold pages that other sequences hold too:
                               ///< once dropped, these must not be written again
  std::int32_t elsewhere = 0;  ///< tokens behind these that an engine keeps itself: import_tables()

  /// Position of the token that comes next.
  [[nodiscard]] KVTILT_HD constexpr std::int64_t next_position() const {
    return length + elsewhere;
  }
};

/// What kernels find wrong. A record's `sequence` is a slot and its `token` a position, unless the
/// fault says otherwise here.
enum class DeviceFault : std::uint32_t {
  None,
  ElementRepaired,    ///< NaN or too large; of pack_pages `sequence` is a page, `token` a row
  NoPageLeft,         ///< for the tokens from `token` on
  TableFull,          ///< reserved pages were not given
  TruncationRefused,  ///< to `token` tokens
  RemovalRefused,     ///< from `token` on
  ForkRefused,        ///< of a sequence of `token` tokens
  UnpackRefused,      ///< `token` is not stored
  WindowFreed,        ///< the oldest query sees back to `token`
  PageNotFull,        ///< at `token`: not exported
  NoRoomForIndices,   ///< of the exported pages
  BadTable,           ///< `sequence` is a place in the batch, of `token` tokens
  PageOutsidePool,    ///< of pack_pages, or its source; `sequence` is the page, `token` its first row
  BadAppendRows,      ///< `sequence`, a place, has rows first_row to token - 1 of `rows` in all
  BadAttendRows,      ///< the same
  TooMuchWork,        ///< of attend_prefill: `token` units; no sequence
};

/// An error that only kernels could find, as only they see the data.
struct DeviceRecord {
  DeviceFault fault;    ///< written after all the rest
  std::uint32_t count;  ///< how many elements or sequences are in error
  std::int32_t layer;
  std::int32_t sequence;
  std::int64_t token;
  std::int32_t head;     ///< kv head
  std::int32_t channel;  ///< of the key, or key_dim + channel of the value
  float value;
  std::int32_t first_row = 0;  ///< of BadAppendRows and BadAttendRows
  std::int32_t rows = 0;       ///< the same
  std::uint32_t claimed = 0;   ///< not 0: a thread is writing the error, or has written it
};

/// The first error of each kind: a NaN of one request must not hide that tokens of another were not
/// stored.
struct DeviceRecords {
  DeviceRecord refused;   ///< work that was not done
  DeviceRecord repaired;  ///< values that were changed before they were stored: ElementRepaired

  /// The error to report first.
  [[nodiscard]] const DeviceRecord& first() const {
    return refused.fault != DeviceFault::None ? refused : repaired;
  }
};

/// One layer of a device cache with all its sequences. kvtilt::LayerView is one layer of one sequence.
struct LayerView {
  int layer;  ///< its index, for error records
  int kv_heads;
  int key_dim;
  int value_dim;
  int values_in_keys;  ///< whether they are the first value_dim channels of the keys
  int page_tokens;
  int sink_tokens;
  int recent_tokens;
  int window;  ///< 0: none
  int keep_sinks;
  int ring_blocks;   ///< tail blocks of a sequence, used as a ring
  int seal_bytes;    ///< the most shared memory that sealing one kv head takes, whole or in slices
  int seal_slices;   ///< blocks that share the sealing of a head's page: append_slices()
  int min_max_only;  ///< whether no sealed page is fitted by another range rule

  /// Device, [kv head], by PageKind. In the 16-bit kinds all heads have equal blocks.
  const HeadLayout* heads[page_kinds];
  const HeadSlices* slices;     ///< device, [kv head]: how a page is split into slices for sealing
  std::byte* pool[page_kinds];  ///< blocks one after the other; 64-byte aligned
  std::int64_t block_bytes[page_kinds];
  SequenceState* states;  ///< [sequence slot]
  PageSlot* tables;       ///< [sequence slot][table_stride]
  std::int64_t table_stride;
  /// [sequence slot]: blocks that have arrived; zero between kernels. Null: imported(), takes no appends
  std::uint32_t* arrivals;
  DeviceRecords* records;
  std::uint64_t fingerprint;  ///< of the sealed pages: layout_fingerprint()

  [[nodiscard]] KVTILT_HD TokenPlacement placement() const {
    return {page_tokens, sink_tokens, recent_tokens, window};
  }

  /// Channels of values that are stored apart from the keys.
  [[nodiscard]] KVTILT_HD constexpr int stored_values() const {
    return values_in_keys != 0 ? 0 : value_dim;
  }

  /// Whether the pages are an engine's own: nobody frees those that a window has left behind.
  [[nodiscard]] KVTILT_HD bool imported() const { return arrivals == nullptr; }

  [[nodiscard]] KVTILT_HD const HeadLayout& head(PageKind kind, int kv_head) const {
    return heads[static_cast<int>(kind)][kv_head];
  }
  [[nodiscard]] KVTILT_HD std::byte* block(PageKind kind, std::int64_t index) const {
    return pool[static_cast<int>(kind)] + index * block_bytes[static_cast<int>(kind)];
  }
  /// The 16-bit block of a sequence's first tokens.
  [[nodiscard]] KVTILT_HD std::byte* sinks(int sequence) const {
    return block(PageKind::Sinks, sequence);
  }
  /// Tail block `index` of a sequence, 0 to ring_blocks - 1, counted from where its tail starts.
  [[nodiscard]] KVTILT_HD std::byte* tail(int sequence, int ring_head, int index) const {
    const int beyond = ring_head + index - ring_blocks;
    const int wrapped = beyond < 0 ? beyond + ring_blocks : beyond;
    return block(PageKind::Tail, static_cast<std::int64_t>(sequence) * ring_blocks + wrapped);
  }
  /// Slots below 0 pad a batch: they act as empty sequences, of which nothing is read.
  [[nodiscard]] KVTILT_HD SequenceState state(int sequence) const {
    return sequence < 0 ? SequenceState{} : states[sequence];
  }
  [[nodiscard]] KVTILT_HD PageSlot* table(int sequence) const {
    return tables + static_cast<std::int64_t>(sequence) * table_stride;
  }
};
static_assert(std::is_trivially_copyable_v<LayerView>);

/// The most slices of a page; each is sealed by one member of a team of blocks (append_light.hpp).
inline constexpr int most_slices = 32;

/// How many blocks share the sealing of one head's page, a power of two: enough that each of 128
/// threads has eight elements to fit.
KVTILT_HD constexpr int append_slices(int page_tokens, int key_dim, int value_dim) {
  constexpr int elements = 1024;
  int slices = 1;
  while (slices < most_slices && slices * elements < page_tokens * (key_dim + value_dim))
    slices *= 2;
  return slices;
}

/// A hash of all that decides where a head's bytes lie and what they mean: equal for pages that
/// kernels read alike, and in practice for no others. Range rules are not in it: they only choose
/// codes.
inline std::uint64_t layout_fingerprint(const PageLayout& layout) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&](std::uint64_t x) {
    hash = (hash ^ x) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  };
  for (const HeadLayout& head : layout.heads) {
    add(head.offset);
    for (const TensorLayout* tensor : {&head.key, &head.value}) {
      if (tensor->matrix.outer == 0) {  // values in keys
        add(1);
        continue;
      }
      add(static_cast<std::uint64_t>(tensor->format.bits));
      add(static_cast<std::uint64_t>(tensor->format.granularity));
      add(static_cast<std::uint64_t>(tensor->format.group));
      add(static_cast<std::uint64_t>(tensor->matrix.outer));
      add(static_cast<std::uint64_t>(tensor->matrix.inner));
      add(tensor->codes);
      add(tensor->metadata);
    }
  }
  return hash;
}

/// Whether sealing a page takes no range rule but MinMax.
inline bool fits_by_min_max(const PageLayout& layout) {
  for (const HeadLayout& head : layout.heads)
    for (const TensorLayout* tensor : {&head.key, &head.value})
      if (tensor->format.quantized() && tensor->format.rule != RangeRule::MinMax) return false;
  return true;
}

/// Describes a layer without its memory. `placement` has the layer's window.
inline LayerView describe_layer(const LayerShape& shape, const TokenPlacement& placement,
                                const LayerLayouts& layouts) {
  LayerView layer{};
  layer.kv_heads = shape.kv_heads;
  if (shape.kv_heads == 0) return layer;
  layer.key_dim = shape.key_dim;
  layer.value_dim = shape.value_dim;
  layer.values_in_keys = shape.values_in_keys ? 1 : 0;
  layer.page_tokens = placement.page_tokens;
  layer.sink_tokens = placement.sink_tokens;
  layer.recent_tokens = placement.recent_tokens;
  layer.window = placement.window;
  layer.keep_sinks = shape.keep_sinks ? 1 : 0;
  layer.ring_blocks = placement.ring_blocks();
  layer.seal_slices = append_slices(layer.page_tokens, layer.key_dim, layer.stored_values());
  for (int kind = 0; kind < page_kinds; ++kind)
    layer.block_bytes[kind] =
        static_cast<std::int64_t>(layouts[static_cast<std::size_t>(kind)].bytes);
  const PageLayout& sealed = layouts[static_cast<std::size_t>(PageKind::Sealed)];
  layer.min_max_only = fits_by_min_max(sealed) ? 1 : 0;
  layer.fingerprint = layout_fingerprint(sealed);
  return layer;
}

/// Sequences of one launch: slots [count] in device memory. A slot below 0 acts as an empty
/// sequence that nothing is done to.
struct Batch {
  const std::int32_t* slots;
  int count;
};

/// Which rows of a tensor [rows, heads, dim] belong to which sequence of a batch.
struct BatchRows {
  const std::int32_t* indptr;  ///< device, [sequences + 1]; null: `each` rows for every sequence
  int each;

  [[nodiscard]] KVTILT_HD std::int64_t first(int sequence) const {
    return indptr != nullptr ? indptr[sequence] : static_cast<std::int64_t>(sequence) * each;
  }
  [[nodiscard]] KVTILT_HD std::int64_t count(int sequence) const {
    return indptr != nullptr ? indptr[sequence + 1] - indptr[sequence] : each;
  }
  /// Whether a sequence's rows do not end before they start and lie in a tensor of `rows` rows. If
  /// not, neither number above means anything.
  [[nodiscard]] KVTILT_HD bool are_sound(int sequence, std::int64_t rows) const {
    const std::int64_t start = first(sequence);
    const std::int64_t end = first(sequence + 1);
    return 0 <= start && start <= end && end <= rows;
  }
};

}  // namespace kvtilt::cuda
