// SPDX-License-Identifier: MIT
/// A warp's private ring of stages in shared memory, into which units (work.hpp) are copied: while the
/// warp attends to one, the next ones arrive. Warps do not wait for each other.
#pragma once

#include <kvtilt/cuda/attention/segment.hpp>
#include <kvtilt/cuda/attention/tile.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Describes a unit in a ring. 16 bytes: one load.
struct RingUnit {
  std::int64_t first_position;  ///< position of slot 0 in its sequence
  std::int32_t tokens;          ///< slots 0 to tokens - 1 hold tokens
  PageKind kind;                ///< a sealed page or its tile, or a tile of sinks or a tail
  bool special;                 ///< some row does not see it whole, or logits have a cap or slopes
};
static_assert(sizeof(RingUnit) == 16);

/// Offsets of the parts of a block's shared memory. The rings' stages come first: [warp][stage].
struct AttendShared {
  std::uint32_t barriers;  ///< [warp][stage]
  std::uint32_t units;     ///< [warp][stage]
  std::uint32_t states;    ///< [warp][item_rows][maximum, sum]
  std::uint32_t outputs;   ///< [warp]: offset of its outputs, in its free stage
  std::uint32_t flag;
  std::uint32_t work;    ///< BlockWork
  std::uint32_t starts;  ///< [sequences + 1] units before each
  std::uint32_t bytes;

  /// stages  per ring; a generic kernel has no ring, but one stage per warp for outputs
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

/// Fetches ahead of its warp, past the end of a segment into the next one. Plain units (full pages that
/// need no mask, nearly all) take few instructions: the table is read for 32 units at once, one per
/// lane, and a RingUnit is written only for a unit that is not plain.
template <class Traits>
class UnitRing {
 public:
  template <class Threads>
  KVTILT_HD UnitRing(const Threads& threads, const AttendShared& shared,
                     const AttendArguments& arguments, int stages)
      : arguments_(arguments),
        stages_(stages),
        first_(static_cast<std::uint32_t>(threads.warp() * stages)),
        barriers_(shared.barriers),
        units_(shared.units) {}

  /// Prepares the rings of all warps of a block. Called by one warp, before a sync().
  template <class Threads>
  KVTILT_HD static void prepare(Threads& threads, const AttendShared& shared, int stages) {
    const int rings = threads.thread_count() / warp_lanes * stages;
    KVTILT_DEVICE_LOOP
    for (int i = threads.lane(); i < rings; i += warp_lanes)
      threads.prepare_stage(reinterpret_cast<std::uint64_t*>(threads.shared() + shared.barriers) +
                            i);
  }

  /// Makes later fetches take this segment's units: those of the warp, which are every n-th of n warps.
  template <class Threads>
  KVTILT_HD void enter(Threads& threads, const Segment& segment) {
    if (segment_ == &segment) return;
    segment_ = &segment;
    after_ = nullptr;
    last_ = segment.last;
    tiles_ = segment.counts.tiles();
    load_slots(threads, segment.first + threads.warp());
  }
  /// Sets the segment to enter after this one; null: none.
  KVTILT_HD void follow(const Segment* after) { after_ = after; }

  /// Starts to copy the next unit, if there is one.
  template <class Threads>
  KVTILT_HD void fetch(Threads& threads) {
    bool page_is_next = next_lane_ < page_lanes_;
    if (!page_is_next) [[unlikely]]
      page_is_next = has_page(threads);
    if (page_is_next) [[likely]] {
      fetch_page(threads);
      step(threads);
    }
    threads.end_stage();
  }

  /// Fetches until only one stage is free.
  template <class Threads>
  KVTILT_HD void fill(Threads& threads) {
    const int ahead = fill_ - use_ + (fill_ < use_ ? stages_ : 0);
    KVTILT_DEVICE_LOOP
    for (int i = ahead + 1; i < stages_; ++i) fetch(threads);
  }

  /// Waits for the oldest unit that was fetched, and returns its bytes. Then release() it.
  template <class Threads>
  KVTILT_HD std::byte* take(Threads& threads) {
    threads.template wait_stage<1>(barrier(threads, use_), parity_);
    return data(threads, use_);
  }
  /// Whether that unit is of a sealed page, full, and not special. The same in all lanes.
  [[nodiscard]] KVTILT_HD bool is_plain() const { return (plain_stages_ >> use_ & 1u) != 0; }
  /// Describes that unit, if it is not plain.
  template <class Threads>
  [[nodiscard]] KVTILT_HD RingUnit taken(Threads& threads) const {
    threads.sync_warp();  // another lane wrote it
    return *unit(threads, use_);
  }
  template <class Threads>
  KVTILT_HD void release(Threads& threads) {
    threads.sync_warp();
    if (++use_ < stages_) return;
    use_ = 0;
    parity_ ^= 1;
  }

  /// Offset in shared memory of a stage that is free until the next fetch().
  [[nodiscard]] KVTILT_HD std::uint32_t free_stage() const {
    return (first_ + static_cast<std::uint32_t>(fill_)) * Traits::stage_bytes;
  }

 private:
  static constexpr std::uint32_t tile_keys = half_tile_bytes(Traits::key_dim);
  static constexpr std::uint32_t tile_values = half_tile_bytes(Traits::value_dim);

  /// Called when no lane holds the next unit's page. False if there is no next unit, or if it is a tile,
  /// which this fetches.
  template <class Threads>
  KVTILT_HD bool has_page(Threads& threads) {
    int next = next_unit(threads);
    if (next >= last_) {
      if (after_ == nullptr) return false;
      enter(threads, *after_);
      next = next_unit(threads);
      if (next >= last_) return false;
    }
    if (next < tiles_) {
      fetch_tile(threads, next);
      step(threads);
      return false;
    }
    know_slots(threads);
    return true;
  }

  template <class Threads>
  KVTILT_HD void fetch_page(Threads& threads) {
    const std::uint64_t from = threads.shuffle(from_, next_lane_);
    const std::byte* page = reinterpret_cast<const std::byte*>(static_cast<std::uintptr_t>(from));
    const std::uint32_t plain = plain_lanes_ >> next_lane_ & 1u;
    plain_stages_ = (plain_stages_ & ~(1u << fill_)) | plain << fill_;
    if (plain == 0 && threads.lane() == next_lane_)
      *unit(threads, fill_) = {slot_.first_position, slot_.tokens, PageKind::Sealed, true};
    if constexpr (Traits::page_units > 1)
      copy_tile(threads, page, segment_->rows.kv_head,
                (next_unit(threads) - tiles_) % Traits::page_units, Traits::page_units);
    else if constexpr (Traits::mixed)
      copy_page(threads, page, Traits::bytes_of(segment_->kind));
    else
      copy_page(threads, page, Traits::unit_bytes);
  }

  template <class Threads>
  KVTILT_HD void fetch_tile(Threads& threads, int next) {
    const TokenTile tile = half_tile(arguments_.layer, Traits::page_tokens, segment_->slot,
                                     segment_->sequence, segment_->counts, next);
    plain_stages_ &= ~(1u << fill_);
    if (threads.lane() == 0)
      *unit(threads, fill_) = {
          tile.first_position, tile.tokens, tile.sink ? PageKind::Sinks : PageKind::Tail,
          segment_->rows.plain(arguments_).excludes(tile.first_position, tile.tokens, tile_extent)};
    copy_tile(threads, tile.block, segment_->rows.kv_head, tile.index, tile.block_tiles);
  }

  template <class Threads>
  KVTILT_HD void step(Threads& threads) {
    fill_ = fill_ + 1 == stages_ ? 0 : fill_ + 1;
    if (++next_lane_ == warp_lanes) [[unlikely]]
      load_slots(threads, next_unit(threads));
  }

  template <class Threads>
  KVTILT_HD void copy_page(Threads& threads, const std::byte* from, std::uint32_t bytes) {
    std::uint64_t* arrived = barrier(threads, fill_);
    threads.begin_stage(arrived, bytes);
    threads.copy_to_stage(data(threads, fill_), from, bytes, arrived);
  }

  /// Copies keys and values of tile `index` of a 16-bit block, which has `of` tiles per head and the
  /// layout [kv head][keys | values].
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

  template <class Threads>
  [[nodiscard]] KVTILT_HD int unit_of_lane(const Threads& threads, int lane) const {
    return lane_0_ + lane * (threads.thread_count() / warp_lanes);
  }
  template <class Threads>
  [[nodiscard]] KVTILT_HD int next_unit(const Threads& threads) const {
    return unit_of_lane(threads, next_lane_);
  }

  /// Loads the page slots of the warp's next 32 units, from `next` on, one per lane: a load for each
  /// unit would stall each time.
  template <class Threads>
  KVTILT_HD void load_slots(Threads& threads, int next) {
    lane_0_ = next;
    next_lane_ = 0;
    page_lanes_ = 0;
    const int unit = unit_of_lane(threads, threads.lane());
    const int in_pages = unit - tiles_;
    if (in_pages >= 0 && unit < last_)
      slot_ = arguments_.layer.table(
          segment_->slot)[segment_->sequence.first_page + in_pages / Traits::page_units];
  }

  /// Waits for load_slots() and derives addresses, and which units are plain.
  template <class Threads>
  KVTILT_HD void know_slots(Threads& threads) {
    constexpr int slots = Traits::page_tokens / Traits::page_units;
    const int unit = unit_of_lane(threads, threads.lane());
    const int first = (unit - tiles_) % Traits::page_units * slots;
    slot_.first_position += first;
    slot_.tokens = tokens_in(slot_, first, slots);
    std::size_t in_page = 0;
    if constexpr (Traits::mixed)
      in_page = segment_->head_offset;
    else if constexpr (Traits::page_units == 1)
      in_page = static_cast<std::size_t>(segment_->rows.kv_head) * Traits::head_bytes;
    from_ = reinterpret_cast<std::uintptr_t>(arguments_.layer.block(PageKind::Sealed, slot_.page) +
                                             in_page);
    const PlainRange plain = segment_->rows.plain(arguments_);
    const int left = ceil_div(last_ - lane_0_, threads.thread_count() / warp_lanes);
    page_lanes_ = left < warp_lanes ? left : warp_lanes;
    plain_lanes_ = threads.ballot(!plain.excludes(slot_.first_position, slot_.tokens, slots));
  }

  // From offsets: pointers would take twice the registers.
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

  const AttendArguments& arguments_;
  int stages_;
  std::uint32_t first_;  ///< this ring's first stage, among those of all warps
  std::uint32_t barriers_;
  std::uint32_t units_;
  int fill_ = 0;              ///< stage that the next fetch() fills
  int use_ = 0;               ///< stage that the next take() returns
  std::uint32_t parity_ = 0;  ///< of its barrier

  const Segment* segment_ = nullptr;
  const Segment* after_ = nullptr;
  int last_ = 0;        ///< one past the segment's units
  int tiles_ = 0;       ///< of the segment's units, first; then come pages
  int lane_0_ = 0;      ///< unit of lane 0; the next lane has the warp's next unit, and so on
  int next_lane_ = 0;   ///< lane whose unit is fetched next
  int page_lanes_ = 0;  ///< lanes before this one have units; 0 until know_slots()
  PageSlot slot_{};     ///< page of this lane's unit; know_slots() reduces it to the unit's part
  std::uint64_t from_ = 0;          ///< address of that page, or of the head in it
  std::uint32_t plain_lanes_ = 0;   ///< bit i: the unit of lane i is plain
  std::uint32_t plain_stages_ = 0;  ///< bit i: the unit in stage i is plain
};

}  // namespace kvtilt::cuda
