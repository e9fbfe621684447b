// SPDX-License-Identifier: MIT
/// A warp's private ring of pages on their way from device memory: while one is attended to, the
/// next ones arrive. No other warp is waited for.
#pragma once

#include <kvtilt/cuda/attend_tile.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Where the parts of a block's shared memory begin.
struct AttendShared {
  std::uint32_t barriers;  ///< rings lie before it: [warp][stage]
  std::uint32_t slots;
  std::uint32_t outputs;  ///< [item_rows][value_dim + output_padding] floats
  std::uint32_t states;   ///< [warp][item_rows][maximum, sum], then [item_rows][2] of all warps
  std::uint32_t flag;
  std::uint32_t starts;  ///< [sequences + 1] units before each
  std::uint32_t bytes;

  /// Makes columns of different lanes start in different banks.
  static constexpr int output_padding = 4;

  template <class Traits>
  KVTILT_HD static AttendShared of(int warps, int stages, int sequences) {
    const std::uint32_t rings = static_cast<std::uint32_t>(warps * stages);
    AttendShared shared;
    shared.barriers = rings * Traits::stage_bytes;
    shared.slots = shared.barriers + (rings + 1) / 2 * 16;
    shared.outputs = shared.slots + rings * 16;
    shared.states =
        shared.outputs + item_rows * (Traits::value_dim + output_padding) * 4;
    shared.flag = shared.states + static_cast<std::uint32_t>(warps + 1) * item_rows * 8;
    shared.starts = shared.flag + 16;
    shared.bytes = shared.starts + static_cast<std::uint32_t>(sequences + 1) * 4;
    return shared;
  }
};

template <class Traits>
class PageRing {
 public:
  template <class Threads>
  KVTILT_HD PageRing(Threads& threads, const AttendShared& shared, int stages)
      : stages_(stages),
        data_(threads.shared() +
              static_cast<std::size_t>(threads.warp() * stages) * Traits::stage_bytes),
        barriers_(reinterpret_cast<std::uint64_t*>(threads.shared() + shared.barriers) +
                  threads.warp() * stages),
        slots_(reinterpret_cast<PageSlot*>(threads.shared() + shared.slots) +
               threads.warp() * stages) {
    for (int stage = 0; stage < stages_; ++stage) threads.prepare_stage(barriers_ + stage);
    threads.sync_warp();
  }

  /// Units `next`, `next` + stride, ... below `end` of a sequence's pages, from `table` on.
  struct Source {
    const LayerStorage* layer;
    const PageSlot* table;
    std::uint64_t head_offset;  ///< of the kv head in a page
    int next;
    int end;
    int stride;
    PageSlot ahead;  ///< of unit `next`, loaded long before it is needed

    KVTILT_HD void look_ahead() {
      if (next < end) ahead = table[next / Traits::page_units];
    }
  };

  [[nodiscard]] KVTILT_HD int stages() const { return stages_; }

  /// Starts the next unit on its way, if there is one.
  template <class Threads>
  KVTILT_HD void fetch(Threads& threads, Source& source) {
    if (source.next < source.end) {
      if (threads.lane() == 0) slots_[fill_] = source.ahead;
      const std::byte* page =
          source.layer->block(PageKind::Sealed, source.ahead.page) + source.head_offset;
      std::byte* to = data_ + static_cast<std::size_t>(fill_) * Traits::stage_bytes;
      std::uint64_t* barrier = barriers_ + fill_;
      threads.begin_stage(barrier, Traits::stage_bytes);
      if constexpr (Traits::page_units == 1) {
        threads.copy_to_stage(to, page, Traits::stage_bytes, barrier);
      } else {
        const int tile = source.next % Traits::page_units;
        const std::byte* values = page + Traits::page_units * Traits::key_bytes;
        threads.copy_to_stage(to, page + tile * Traits::key_bytes, Traits::key_bytes, barrier);
        threads.copy_to_stage(to + Traits::key_bytes, values + tile * Traits::value_bytes,
                              Traits::value_bytes, barrier);
      }
      fill_ = fill_ + 1 == stages_ ? 0 : fill_ + 1;
      source.next += source.stride;
      source.look_ahead();
    }
    threads.end_stage();
  }

  /// The oldest unit that was fetched, once it is there. Then release() it.
  template <class Threads>
  KVTILT_HD const std::byte* take(Threads& threads, PageSlot& slot) {
    threads.template wait_stage<1>(barriers_ + use_, parity_);
    threads.sync_warp();
    slot = slots_[use_];
    return data_ + static_cast<std::size_t>(use_) * Traits::stage_bytes;
  }
  template <class Threads>
  KVTILT_HD void release(Threads& threads) {
    threads.sync_warp();
    if (++use_ < stages_) return;
    use_ = 0;
    parity_ ^= 1;
  }

 private:
  int stages_;
  int fill_ = 0;
  int use_ = 0;
  std::uint32_t parity_ = 0;
  std::byte* data_;
  std::uint64_t* barriers_;
  PageSlot* slots_;
};

}  // namespace kvtilt::cuda
