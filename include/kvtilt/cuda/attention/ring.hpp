// SPDX-License-Identifier: MIT
/// A warp's private ring of units on their way from device memory: while one is attended to, the
/// next ones arrive. No other warp is waited for.
#pragma once

#include <kvtilt/cuda/attention/segment.hpp>
#include <kvtilt/cuda/attention/tile.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// A unit whose bytes are in a ring. 16 bytes: one load.
struct RingUnit {
  std::int64_t first_position;  ///< of slot 0 in its text
  std::int32_t tokens;          ///< slots 0 to tokens - 1 hold tokens
  PageKind kind;                ///< of what it is a page or a tile
};
static_assert(sizeof(RingUnit) == 16);

/// Where the parts of a block's shared memory begin. Stages of rings come first: [warp][stage].
struct AttendShared {
  std::uint32_t barriers;  ///< [warp][stage]
  std::uint32_t units;     ///< [warp][stage]
  std::uint32_t states;    ///< [warp][item_rows][maximum, sum]
  std::uint32_t outputs;   ///< [warp]: where its outputs lie, in a stage that is free
  std::uint32_t flag;
  std::uint32_t work;    ///< BlockWork
  std::uint32_t starts;  ///< [sequences + 1] units before each
  std::uint32_t bytes;

  /// stages  of a ring; a generic kernel has none, but one for outputs
  template <class Traits>
  KVTILT_HD static AttendShared of(int warps, int stages, int sequences) {
    static_assert(Traits::stage_bytes >= output_bytes(Traits::value_dim));
    const std::uint32_t all = static_cast<std::uint32_t>(Traits::generic ? warps : warps * stages);
    AttendShared shared;
    shared.barriers = all * Traits::stage_bytes;
    shared.units = shared.barriers + (all + 1) / 2 * 16;
    shared.states = shared.units + all * 16;
    shared.outputs = shared.states + static_cast<std::uint32_t>(warps) * item_rows * 8;
    shared.flag = shared.outputs + (static_cast<std::uint32_t>(warps) + 3) / 4 * 16;
    shared.work = shared.flag + 16;
    shared.starts = shared.work + static_cast<std::uint32_t>(sizeof(BlockWork));
    shared.bytes = shared.starts + static_cast<std::uint32_t>(sequences + 1) * 4;
    return shared;
  }
};

/// It runs ahead of its warp, from the end of a segment into the one that follows.
template <class Traits>
class UnitRing {
 public:
  template <class Threads>
  KVTILT_HD UnitRing(const Threads& threads, const AttendShared& shared, const LayerStorage& layer,
                     int stages)
      : layer_(layer),
        stages_(stages),
        first_(static_cast<std::uint32_t>(threads.warp() * stages)),
        barriers_(shared.barriers),
        units_(shared.units) {}

  /// The rings of all warps of a block: one warp does it, before a sync().
  template <class Threads>
  KVTILT_HD static void prepare(Threads& threads, const AttendShared& shared, int stages) {
    const int rings = threads.thread_count() / warp_lanes * stages;
    KVTILT_DEVICE_LOOP
    for (int i = threads.lane(); i < rings; i += warp_lanes)
      threads.prepare_stage(reinterpret_cast<std::uint64_t*>(threads.shared() + shared.barriers) +
                            i);
  }

  /// What is fetched from now on is of this segment: of its units those of the warp, one in as many
  /// as there are warps.
  template <class Threads>
  KVTILT_HD void enter(Threads& threads, const Segment& segment) {
    if (segment_ == &segment) return;
    segment_ = &segment;
    after_ = nullptr;
    next_ = segment.first + threads.warp();
    last_ = segment.last;
    tiles_ = segment.counts.tiles();
    load_slots(threads);
  }
  /// What comes behind the segment that was entered; null: nothing.
  KVTILT_HD void follow(const Segment* after) { after_ = after; }

  /// Starts the next unit on its way, if there is one.
  template <class Threads>
  KVTILT_HD void fetch(Threads& threads) {
    if (next_ >= last_ && after_ != nullptr) enter(threads, *after_);
    if (next_ < last_) {
      const Segment& segment = *segment_;
      const int in_pages = next_ - tiles_;
      if (in_pages < 0) {
        const HalfTile tile = half_tile(layer_, Traits::page_tokens, segment.slot, segment.sequence,
                                        segment.counts, next_);
        if (threads.lane() == 0)
          *unit(threads, fill_) = {tile.first_position, tile.tokens,
                                   tile.sink ? PageKind::Sinks : PageKind::Tail};
        copy_tile(threads, tile.block, segment.rows.kv_head, tile.index, tile.of);
      } else {
        const std::byte* page =
            layer_.block(PageKind::Sealed, threads.shuffle(slot_.page, lane_of_next_));
        const int index = in_pages % Traits::page_units;
        if (threads.lane() == lane_of_next_) {
          constexpr int slots = Traits::page_tokens / Traits::page_units;
          const int held = slot_.tokens - index * slots;
          *unit(threads, fill_) = {slot_.first_position + index * slots,
                                   held < 0       ? 0
                                   : held < slots ? held
                                                  : slots,
                                   PageKind::Sealed};
        }
        if constexpr (Traits::page_units > 1)
          copy_tile(threads, page, segment.rows.kv_head, index, Traits::page_units);
        else if constexpr (Traits::mixed)
          copy_page(threads, page + segment.head_offset, Traits::bytes_of(segment.kind));
        else
          copy_page(threads,
                    page + static_cast<std::uint32_t>(segment.rows.kv_head) * Traits::head_bytes,
                    Traits::unit_bytes);
      }
      fill_ = fill_ + 1 == stages_ ? 0 : fill_ + 1;
      next_ += threads.thread_count() / warp_lanes;
      if (++lane_of_next_ == warp_lanes) load_slots(threads);
    }
    threads.end_stage();
  }

  /// Fetches until one stage alone is free.
  template <class Threads>
  KVTILT_HD void fill(Threads& threads) {
    const int ahead = fill_ - use_ + (fill_ < use_ ? stages_ : 0);
    KVTILT_DEVICE_LOOP
    for (int i = ahead + 1; i < stages_; ++i) fetch(threads);
  }

  /// The oldest unit that was fetched, once it is there. Then release() it.
  template <class Threads>
  KVTILT_HD std::byte* take(Threads& threads, RingUnit& taken) {
    threads.template wait_stage<1>(barrier(threads, use_), parity_);
    threads.sync_warp();
    taken = *unit(threads, use_);
    return data(threads, use_);
  }
  template <class Threads>
  KVTILT_HD void release(Threads& threads) {
    threads.sync_warp();
    if (++use_ < stages_) return;
    use_ = 0;
    parity_ ^= 1;
  }

  /// Where a stage is free, from the start of shared memory, until the next fetch().
  [[nodiscard]] KVTILT_HD std::uint32_t free_stage() const {
    return (first_ + static_cast<std::uint32_t>(fill_)) * Traits::stage_bytes;
  }

 private:
  static constexpr std::uint32_t tile_keys = half_tile_bytes(Traits::key_dim);
  static constexpr std::uint32_t tile_values = half_tile_bytes(Traits::value_dim);

  template <class Threads>
  KVTILT_HD void copy_page(Threads& threads, const std::byte* from, std::uint32_t bytes) {
    std::uint64_t* arrived = barrier(threads, fill_);
    threads.begin_stage(arrived, bytes);
    threads.copy_to_stage(data(threads, fill_), from, bytes, arrived);
  }

  /// Tile `index` of a 16-bit block of `of` tiles, laid out [kv head][keys | values]: keys, then
  /// values.
  template <class Threads>
  KVTILT_HD void copy_tile(Threads& threads, const std::byte* block, int kv_head, int index,
                           int of) {
    const std::byte* keys =
        block + static_cast<std::uint32_t>(kv_head * of) * (tile_keys + tile_values);
    std::uint64_t* arrived = barrier(threads, fill_);
    std::byte* to = data(threads, fill_);
    threads.begin_stage(arrived, tile_keys + tile_values);
    threads.copy_to_stage(to, keys + index * tile_keys, tile_keys, arrived);
    threads.copy_to_stage(to + tile_keys, keys + of * tile_keys + index * tile_values, tile_values,
                          arrived);
  }

  /// What the table says of 32 units to come is in the lanes: a load for each would be waited for
  /// each time.
  template <class Threads>
  KVTILT_HD void load_slots(Threads& threads) {
    const int unit = next_ + threads.lane() * (threads.thread_count() / warp_lanes);
    const int in_pages = unit - tiles_;
    lane_of_next_ = 0;
    if (in_pages >= 0 && unit < last_)
      slot_ = layer_.table(
          segment_->slot)[segment_->sequence.first_page + in_pages / Traits::page_units];
  }

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
  KVTILT_HD RingUnit* unit(Threads& threads, int stage) const {
    return reinterpret_cast<RingUnit*>(threads.shared() + units_) + first_ + stage;
  }

  const LayerStorage& layer_;
  int stages_;
  std::uint32_t first_;  ///< stage of all warps'
  std::uint32_t barriers_;
  std::uint32_t units_;
  int fill_ = 0;
  int use_ = 0;
  std::uint32_t parity_ = 0;

  const Segment* segment_ = nullptr;
  const Segment* after_ = nullptr;
  int next_ = 0;   ///< unit of the segment
  int last_ = 0;   ///< of the segment, one past
  int tiles_ = 0;  ///< of the segment; then come pages
  int lane_of_next_ = 0;
  PageSlot slot_{};  ///< of this lane's unit to come, if that is of a page
};

}  // namespace kvtilt::cuda
