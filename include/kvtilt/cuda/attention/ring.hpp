// SPDX-License-Identifier: MIT
/// A warp's private ring of pages on their way from device memory: while one is attended to, the
/// next ones arrive. No other warp is waited for.
#pragma once

#include <kvtilt/cuda/attention/tile.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Where the parts of a block's shared memory begin.
struct AttendShared {
  std::uint32_t barriers;  ///< rings lie before it: [warp][stage]; outputs of warps take turns
  std::uint32_t slots;
  std::uint32_t states;  ///< [warp][item_rows][maximum, sum]
  std::uint32_t flag;
  std::uint32_t segment;
  std::uint32_t starts;  ///< [sequences + 1] units before each, and the plan's chunk
  std::uint32_t bytes;

  static constexpr std::uint32_t segment_bytes = 192;

  /// Makes columns of different lanes start in different banks.
  static constexpr int output_padding = 4;

  template <class Traits>
  KVTILT_HD static AttendShared of(int warps, int stages, int sequences) {
    const std::uint32_t rings = static_cast<std::uint32_t>(warps * stages);
    AttendShared shared;
    const std::uint32_t outputs =  // of all warps, once the rings are empty
        static_cast<std::uint32_t>(warps * item_rows * (Traits::value_dim + output_padding) * 4);
    const std::uint32_t pages = rings * Traits::stage_bytes;
    shared.barriers = pages > outputs ? pages : outputs;
    shared.slots = shared.barriers + (rings + 1) / 2 * 16;
    shared.states = shared.slots + rings * 16;
    shared.flag = shared.states + static_cast<std::uint32_t>(warps) * item_rows * 8;
    shared.segment = shared.flag + 16;
    shared.starts = shared.segment + segment_bytes;
    shared.bytes = shared.starts + static_cast<std::uint32_t>(sequences + 2) * 4;
    return shared;
  }
};

template <class Traits>
class PageRing {
 public:
  template <class Threads>
  KVTILT_HD PageRing(Threads& threads, const AttendShared& shared, int stages)
      : stages_(stages),
        first_(static_cast<std::uint32_t>(threads.warp() * stages)),
        barriers_(shared.barriers),
        slots_(shared.slots) {
    for (int stage = 0; stage < stages_; ++stage) threads.prepare_stage(barrier(threads, stage));
    threads.sync_warp();
  }

  /// Units `next`, `next` + stride, ... below `end` of a sequence's pages, from `table` on. The
  /// slots of 32 units to come are in the lanes: a load for each would be waited for each time.
  struct Source {
    const LayerStorage* layer;
    const PageSlot* table;
    std::uint64_t head_offset;  ///< of the kv head in a page
    int next;
    int end;
    int stride;
    int lane_of_next = 0;
    PageSlot slot;  ///< of unit next + (lane - lane_of_next) * stride

    template <class Threads>
    KVTILT_HD void load_slots(Threads& threads) {
      const int unit = next + threads.lane() * stride;
      lane_of_next = 0;
      if (unit < end) slot = table[unit / Traits::page_units];
    }
  };

  [[nodiscard]] KVTILT_HD int stages() const { return stages_; }

  /// Starts the next unit on its way, if there is one.
  template <class Threads>
  KVTILT_HD void fetch(Threads& threads, Source& source) {
    if (source.next < source.end) {
      if (threads.lane() == source.lane_of_next) *slot(threads, fill_) = source.slot;
      const std::byte* page =
          source.layer->block(PageKind::Sealed,
                              threads.shuffle(source.slot.page, source.lane_of_next)) +
          source.head_offset;
      std::byte* to = data(threads, fill_);
      std::uint64_t* arrived = barrier(threads, fill_);
      threads.begin_stage(arrived, Traits::stage_bytes);
      if constexpr (Traits::page_units == 1) {
        threads.copy_to_stage(to, page, Traits::stage_bytes, arrived);
      } else {
        const int tile = source.next % Traits::page_units;
        const std::byte* values = page + Traits::page_units * Traits::key_bytes;
        threads.copy_to_stage(to, page + tile * Traits::key_bytes, Traits::key_bytes, arrived);
        threads.copy_to_stage(to + Traits::key_bytes, values + tile * Traits::value_bytes,
                              Traits::value_bytes, arrived);
      }
      fill_ = fill_ + 1 == stages_ ? 0 : fill_ + 1;
      source.next += source.stride;
      if (++source.lane_of_next == warp_lanes) source.load_slots(threads);
    }
    threads.end_stage();
  }

  /// The oldest unit that was fetched, once it is there. Then release() it.
  template <class Threads>
  KVTILT_HD const std::byte* take(Threads& threads, PageSlot& page) {
    threads.template wait_stage<1>(barrier(threads, use_), parity_);
    threads.sync_warp();
    page = *slot(threads, use_);
    return data(threads, use_);
  }
  template <class Threads>
  KVTILT_HD void release(Threads& threads) {
    threads.sync_warp();
    if (++use_ < stages_) return;
    use_ = 0;
    parity_ ^= 1;
  }

 private:
  // Offsets rather than pointers: they are half as many registers.
  template <class Threads>
  KVTILT_HD std::byte* data(Threads& threads, int stage) const {
    return threads.shared() + (first_ + static_cast<std::uint32_t>(stage)) * Traits::stage_bytes;
  }
  template <class Threads>
  KVTILT_HD std::uint64_t* barrier(Threads& threads, int stage) const {
    return reinterpret_cast<std::uint64_t*>(threads.shared() + barriers_) + first_ + stage;
  }
  template <class Threads>
  KVTILT_HD PageSlot* slot(Threads& threads, int stage) const {
    return reinterpret_cast<PageSlot*>(threads.shared() + slots_) + first_ + stage;
  }

  int stages_;
  std::uint32_t first_;  ///< stage of all warps'
  std::uint32_t barriers_;
  std::uint32_t slots_;
  int fill_ = 0;
  int use_ = 0;
  std::uint32_t parity_ = 0;
};

}  // namespace kvtilt::cuda
