// SPDX-License-Identifier: MIT
/// Appends a few tokens each to 32 sequences, by a team of blocks: `members` for each kv head. Tokens
/// are written to their slots one by one; a page that leaves a tail is sealed in slices, one per
/// block. A decode step waits for the blocks that seal: from the launch to their last store there
/// are three dependent loads (slots, states, the tail) and the work on one slice.
///
/// What append() does with these parts, in each block:
///
///     plan     Warp 0 reads slots and states of all 32 sequences, one per lane, and plans for them.
///              States do not change meanwhile (see publish), so all blocks of the team plan the
///              same and divide the work without a word. The other warps load the first of
///              their sequence's new elements, and warp 1 prepares a slice. sync(): all see
///              TeamShared.
///     write    Block `member` writes the new tokens of the team's sequence of that number, of its
///              head, all but warp 0.
///     seal     The pages that light sequences seal are cut into slices for the team's blocks. They
///              were full before the append and no new token reuses their tail blocks (is_light()),
///              so a block reads no byte that another one writes. A heavy sequence's pages are
///              sealed by the blocks that write its tokens.
///     arrive   The block adds 1 to the team's counter, a release: it reads states and tables no
///              more. If no sequence is heavy or frees pages, that is before `write`, as the index
///              of the page to seal is all it needs of a table; else at the end, after a sync().
///     publish  The last block to arrive acquires with a fence(): whatever it writes comes after all
///              that others read. It zeros the counter for the next launch, then writes states and
///              tables, by one warp (publish_light()), or by all threads if tables change their
///              order (publish_team()). Others may still write tokens and codes then: only later
///              kernels read those, and they wait for the end of this one.
///
/// The counter is that of the team's first sequence with work. No batch has a sequence twice, so no
/// other team has the same.
#pragma once

#include <kvtilt/cuda/cache/append_head.hpp>
#include <kvtilt/cuda/page/seal_slice.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Sequences that a team of blocks serves: one for each lane of a warp.
inline constexpr int append_team = 32;
static_assert(append_team == most_slices);
/// The most tokens that a light sequence gets in one append; a sequence that is not light is heavy.
inline constexpr int append_light_tokens = 8;

/// Blocks of a team for each kv head: at least one for each sequence, and for each slice of a page.
KVTILT_HD constexpr int team_members(const LayerView& layer, int sequences) {
  const int count = sequences < append_team ? sequences : append_team;
  return count > layer.seal_slices ? count : layer.seal_slices;
}

namespace detail {

/// What one block of a team seals: a slice of its head's part of a page.
struct LightSeal {
  const std::byte* keys;
  const std::byte* values;
  std::byte* block;  ///< the head's block in the page
  int slice;
  int slices;  ///< 0: nothing to do
};

/// What a block knows of the sequences of its team. Masks have a bit for each.
struct alignas(16) TeamShared {
  SequenceState states[append_team];  ///< before the append
  AppendPlan plans[append_team];
  std::int64_t first_rows[append_team];
  std::int32_t slots[append_team];
  std::uint32_t work;   ///< sequences with new tokens, all of which fit
  std::uint32_t heavy;  ///< those of them that are heavy
  std::uint32_t frees;  ///< those that are heavy or free pages: their tables change order
  LightSeal seal;
  // The block's own sequence, if heavy; kept here because sealing a slice needs the registers.
  bool own_heavy;
  int own_index;
  int own_head;
  bool last;  ///< whether this is the last of the team's blocks to arrive

  /// Slot of the first sequence with work: the team's blocks share its counter.
  [[nodiscard]] KVTILT_HD std::int32_t counter() const {
    return slots[count_bits((work & -work) - 1)];
  }
};

/// Whether a sequence is light: it gets few tokens and seals at most one page, which was full
/// before the append and whose tail block none of the new tokens reuses.
KVTILT_HD constexpr bool is_light(const AppendPlan& plan, const LayerView& layer) {
  const std::int64_t in_tail = plan.length - plan.tail_start;
  const std::int64_t room = static_cast<std::int64_t>(layer.ring_blocks) * layer.page_tokens;
  // Bitwise, without short-circuits: branches take longer.
  const bool few = (plan.tokens <= append_light_tokens) & (plan.seals <= 1) & (plan.skipped == 0);
  const bool apart = (in_tail >= layer.page_tokens) & (in_tail + plan.tokens <= room);
  return few & ((plan.seals == 0) | apart);
}

/// Divides `seals` pages among the members of a team: which page, and which slice of it, `member`
/// seals. Pages are cut into as many slices as there are members for. 0 slices: nothing to seal.
struct SealShare {
  int page;
  int slice;
  int slices;

  KVTILT_HD constexpr SealShare(int seals, int member, int members, int most_slices)
      : page(0), slice(member), slices(most_slices) {
    while (slices > 1 && seals * slices > members) slices /= 2;
    for (; slice >= slices && page < seals; ++page) slice -= slices;
    if (page == seals) slices = 0;
  }
};

/// A block's place in its team.
struct TeamPlace {
  int first;   ///< index in the batch of the team's first sequence
  int member;  ///< 0 to members - 1; each has a block for every kv head
  int members;
  int head;
};

/// Prefetches the 16-bit tokens of a page. The blocks that share it prefetch equal parts, up to 2
/// KiB each, whichever slices they seal: much work is left before the first load.
template <class Threads>
KVTILT_HD void prefetch_page(const Threads& threads, const LayerView& layer,
                             const LightSeal& seal) {
  if (seal.slices == 0) return;
  constexpr int step = 64;  // memory delivers two 32-byte sectors at once
  const int bytes =
      layer.page_tokens * (layer.key_dim + layer.stored_values()) * static_cast<int>(sizeof(F16)) >>
      bits_below(seal.slices);
  const int at = threads.lane() * step;
  if (at < bytes) threads.prefetch(seal.keys + seal.slice * bytes + at);
}

/// Plans a team's append. One warp calls it, each lane for the sequence in `slot` (below 0: none).
/// The lane whose sequence's page this block seals gets the page's index in the pool; others get
/// -1. That load may still be in flight: the first use waits for it.
///
/// reports  whether the block records that tokens do not fit
template <class Threads>
KVTILT_HD std::int32_t plan_team(const Threads& threads, const AppendArguments& arguments,
                                 const TeamPlace& place, std::int32_t slot, bool reports,
                                 TeamShared& team) {
  const LayerView& layer = arguments.layer;
  const int lane = threads.lane();
  const int index = place.first + lane;
  const bool exists = slot >= 0;
  std::int64_t tokens = 0;
  std::int64_t first_row = 0;
  SequenceState state{};
  if (exists) state = layer.states[slot];  // in flight while all rows are checked
  if (rows_are_sound(threads, arguments) && exists) {
    tokens = arguments.rows.count(index);
    first_row = arguments.rows.first(index);
  }
  // Computed even without tokens, when it reads no table and is ignored: a branch takes longer.
  const AppendPlan plan =
      plan_append(layer.placement(), state, layer.table(exists ? slot : 0), tokens);
  if (reports && tokens > 0 && !plan.fits)
    record_error(threads, layer.records,
                 sequence_fault(DeviceFault::NoPageLeft, layer.layer, slot, state.length));
  const bool works = tokens > 0 && plan.fits;
  const std::uint32_t work = threads.ballot(works);
  const std::uint32_t heavy = threads.ballot(works && !is_light(plan, layer));
  const std::uint32_t seals = threads.ballot(works && plan.seals > 0) & ~heavy;
  const std::uint32_t frees = threads.ballot(works && plan.freed > 0);
  std::int32_t page = -1;
  if (lane == 0) {
    team.work = work;
    team.heavy = heavy;
    team.frees = frees | heavy;
    team.seal.slices = 0;
    team.own_heavy = place.member < append_team && (heavy >> place.member & 1u) != 0;
    team.own_index = place.first + place.member;
    team.own_head = place.head;
  }
  threads.sync_warp();
  if ((seals >> lane & 1u) != 0) {
    const SealShare share(count_bits(seals), place.member, place.members, layer.seal_slices);
    if (share.slices > 0 && share.page == count_bits(seals & ((1u << lane) - 1))) {
      // Read here, by one lane: once a block has arrived it must not read the table.
      page = page_for(plan, state, layer.table(slot), 0);
      // All heads have equal 16-bit blocks: keys, then values.
      const std::int64_t key_bytes =
          static_cast<std::int64_t>(layer.page_tokens) * layer.key_dim * 2;
      const std::int64_t head_bytes = static_cast<std::int64_t>(layer.page_tokens) *
                                      (layer.key_dim + layer.stored_values()) * 2;
      const std::byte* keys = layer.tail(slot, state.ring_head, 0) + place.head * head_bytes;
      team.seal = {keys, keys + key_bytes, nullptr, share.slice, share.slices};
    }
  }
  if (seals != 0) {
    threads.sync_warp();
    prefetch_page(threads, layer, team.seal);
  }
  if (exists) {
    team.slots[lane] = slot;
    team.first_rows[lane] = first_row;
    team.states[lane] = state;
    team.plans[lane] = plan;
  }
  return page;
}

/// The elements of one head that a thread writes; the first warp takes no part, as it plans.
/// Neighbouring threads write neighbouring channels, so that each sector is written once: a step of
/// many sequences is bound by partial writes of sectors (each sector written twice: 1.6 us more for
/// 64 sequences on an H200).
class LightElements {
 public:
  static constexpr int together = 3;  ///< loads in flight

  template <class Threads>
  KVTILT_HD LightElements(const Threads& threads, const AppendArguments& arguments, int head)
      : arguments_(arguments),
        head_(head),
        thread_(threads.thread() - warp_lanes),
        step_(threads.thread_count() - warp_lanes) {}

  [[nodiscard]] KVTILT_HD int first() const { return thread_; }
  [[nodiscard]] KVTILT_HD int element(int base, int i) const { return base + i * step_; }
  [[nodiscard]] KVTILT_HD int next(int base) const { return base + together * step_; }
  [[nodiscard]] KVTILT_HD int count() const {
    return arguments_.layer.key_dim + arguments_.layer.stored_values();
  }
  /// Loads bits without converting them (f32 as two halves), so that nothing here waits for a load.
  /// Past the last element it loads that one again.
  KVTILT_HD void load(std::int64_t row, int base) {
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < together; ++i) {
      const int at = element(base, i) < count() ? element(base, i) : count() - 1;
      const bool keys = at < arguments_.layer.key_dim;
      const TensorView& rows = keys ? arguments_.keys : arguments_.values;
      const bool wide = rows.type == ElementType::F32;
      const std::int64_t index = row * rows.token_stride + head_ * rows.head_stride +
                                 (keys ? at : at - arguments_.layer.key_dim);
      const std::uint16_t* from =
          static_cast<const std::uint16_t*>(rows.data) + (wide ? 2 * index : index);
      low_[i] = from[0];
      high_[i] = 0;
      if (wide) high_[i] = from[1];
    }
  }
  [[nodiscard]] KVTILT_HD float value(int i, bool keys) const {
    const ElementType type = keys ? arguments_.keys.type : arguments_.values.type;
    if (type == ElementType::F32) return bit_cast<float>(low_[i] | high_[i] << 16);
    if (type == ElementType::BF16) return bit_cast<float>(low_[i] << 16);
    return widen(F16{static_cast<std::uint16_t>(low_[i])});
  }

 private:
  const AppendArguments& arguments_;
  int head_;
  int thread_;
  int step_;
  std::uint32_t low_[together];
  std::uint32_t high_[together];
};

/// Writes the new tokens of one head of a light sequence. The 16-bit blocks of all heads are alike.
/// The caller has loaded the first elements into `elements`.
template <class Threads>
KVTILT_HD void write_light(const Threads& threads, const AppendArguments& arguments,
                           const TeamShared& team, int member, int head, float key_limit,
                           float value_limit, LightElements& elements) {
  const LayerView& layer = arguments.layer;
  const AppendPlan& plan = team.plans[member];
  const int slot_of = team.slots[member];
  KVTILT_DEVICE_LOOP
  for (int token = 0; token < static_cast<int>(plan.tokens); ++token) {
    const std::int64_t position = plan.length + token;
    const bool sinks = position < layer.sink_tokens;
    int slot = static_cast<int>(sinks ? position : position - plan.tail_start);
    int block_slots = layer.page_tokens;
    std::byte* to;
    if (sinks) {
      block_slots = (layer.sink_tokens + tile_extent - 1) / tile_extent * tile_extent;
      to = layer.sinks(slot_of);
    } else {
      // A shift and a mask, as pages have 2^n tokens: divisions take longer.
      to = layer.tail(slot_of, team.states[member].ring_head, slot >> bits_below(block_slots));
      slot &= block_slots - 1;
    }
    const int key_bytes = block_slots * layer.key_dim * static_cast<int>(sizeof(F16));
    const int value_bytes = block_slots * layer.stored_values() * static_cast<int>(sizeof(F16));
    to += static_cast<std::int64_t>(head) * (key_bytes + value_bytes);
    KVTILT_DEVICE_LOOP
    for (int base = elements.first(); base < elements.count(); base = elements.next(base)) {
      if (token > 0 || base > elements.first())
        elements.load(team.first_rows[member] + token, base);
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < LightElements::together; ++i) {
        const int element = elements.element(base, i);
        if (element >= elements.count()) continue;
        const bool keys = element < layer.key_dim;
        const int dim = keys ? layer.key_dim : layer.stored_values();
        const int channel = keys ? element : element - layer.key_dim;
        const float limit = keys ? key_limit : value_limit;
        float x = elements.value(i, keys);
        if (!is_storable(x, limit)) {
          record_error(
              threads, layer.records,
              {DeviceFault::ElementRepaired, 1, layer.layer, slot_of, position, head, element, x});
          x = storable(x, limit);
        }
        const FragmentPlace place = fragment_place(keys ? Role::Keys : Role::Values,
                                                   keys ? slot : channel, keys ? channel : slot);
        std::byte* const tile =
            to + (keys ? 0 : key_bytes) +
            (slot / tile_extent * tiles_along(dim) + channel / tile_extent) * fragment_tile_bytes;
        reinterpret_cast<F16*>(tile + place.lane * 16 + place.reg * 4)[place.half] =
            nearest_half(x);
      }
    }
  }
}

/// Seals the slice that the block has begun with begin_slice().
template <class Threads>
KVTILT_HD void finish_seal(const Threads& threads, const TeamShared& team, SliceFit& fit) {
  seal_slice(threads, team.seal.keys, team.seal.values, team.seal.block,
             threads.shared() + sizeof(AppendShared), fit);
}

/// Seals a whole page of a heavy sequence. A second copy of the sealing code: in one loop with
/// this, a slice would run out of registers.
template <class Threads>
KVTILT_HD void seal_page(const Threads& threads, const SealJob& job, TeamShared& team) {
  std::byte* const shared = threads.shared() + sizeof(AppendShared);
  threads.sync();  // the shared memory of the page sealed before is free
  if (threads.thread() < 2) take_slice(threads.thread(), shared, 0, 1, threads.thread_count());
  if (threads.thread() == 0) team.seal = {job.keys, job.values, job.block, 0, 1};
  threads.sync();
  SliceFit fit;
  begin_slice(threads, team.seal.keys, team.seal.values, shared, fit);
  finish_seal(threads, team, fit);
}

/// Publishes the states of sequences whose tables keep their order: one warp of the last block.
template <class Threads>
KVTILT_HD void publish_light(const Threads& threads, const LayerView& layer,
                             const TeamShared& team) {
  const int lane = threads.lane();
  if (lane == 0) layer.arrivals[team.counter()] = 0;
  if (((team.work & ~team.frees) >> lane & 1u) == 0) return;
  SequenceState state = team.states[lane];
  const int slot = team.slots[lane];
  finish_append(SingleThread{}, layer.placement(), team.plans[lane], layer.ring_blocks, state,
                layer.table(slot));
  layer.states[slot] = state;
}

/// Publishes the states and tables of all sequences of the team: all threads of the last block.
template <class Threads>
KVTILT_HD void publish_team(const Threads& threads, const LayerView& layer,
                            const TeamShared& team) {
  if (threads.warp() == 0) publish_light(threads, layer, team);
  KVTILT_DEVICE_LOOP
  for (std::uint32_t left = team.frees; left != 0; left &= left - 1) {
    const int member = count_bits((left & -left) - 1);
    SequenceState state = team.states[member];
    const int slot = team.slots[member];
    finish_append(threads, layer.placement(), team.plans[member], layer.ring_blocks, state,
                  layer.table(slot));
    if (threads.thread() == 0) layer.states[slot] = state;
  }
}

}  // namespace detail

}  // namespace kvtilt::cuda
