// SPDX-License-Identifier: MIT
/// Sequences that get a few tokens, 32 at a time: a team of blocks. A warp of each block looks at all
/// of them; tokens go to their slots one by one; pages that leave the tail are sealed in slices, which
/// the team shares out.
#pragma once

#include <kvtilt/cuda/cache/append_head.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

/// Sequences that the blocks of a team take together: one for each lane of a warp.
inline constexpr int append_team = 32;
/// Blocks that share the sealing of one head's page: with these a warp fits 16 groups, once.
inline constexpr int append_slices = 4;
/// A sequence that gets more tokens is not light.
inline constexpr int append_light_tokens = 8;

namespace detail {

/// What a block knows of the sequences of its team.
struct alignas(16) TeamShared {
  SequenceState states[append_team];  ///< before
  AppendPlan plans[append_team];
  std::int64_t first_rows[append_team];
  std::int32_t slots[append_team];
  std::int32_t pages[append_team];  ///< that light sequences seal
  std::uint32_t work;               ///< sequences with new tokens, all of which fit
  std::uint32_t heavy;              ///< those of them that are not light
  std::uint32_t seals;              ///< light ones that seal a page
  std::uint32_t frees;              ///< those whose tables change their order
  bool last;                        ///< of the team's blocks to finish
};

/// Whether a sequence's tokens go to their slots one by one, and its page, if one is sealed, holds
/// none of them and is not written before it is sealed.
KVTILT_HD constexpr bool is_light(const AppendPlan& plan, const LayerStorage& layer) {
  if (plan.tokens > append_light_tokens || plan.seals > 1 || plan.skipped > 0) return false;
  return plan.seals == 0 || (plan.length >= plan.tail_start + layer.page_tokens &&
                             tail_blocks(plan, layer.page_tokens).last <= layer.ring_blocks);
}

/// A warp looks at all sequences of a team. `reports`: whether it records that tokens do not fit.
template <class Threads>
KVTILT_HD void plan_team(const Threads& threads, const AppendArguments& arguments, int first,
                         bool reports, TeamShared& team) {
  const LayerStorage& layer = arguments.layer;
  const int lane = threads.lane();
  const int index = first + lane;
  std::int64_t tokens = 0;
  AppendPlan plan{};
  if (index < arguments.batch.count) {
    const std::int32_t slot = arguments.batch.slots[index];
    tokens = arguments.rows.count(index);
    const SequenceState state = layer.states[slot];
    if (tokens > 0) plan = plan_append(layer.placement(), state, layer.table(slot), tokens);
    team.slots[lane] = slot;
    team.first_rows[lane] = arguments.rows.first(index);
    team.states[lane] = state;
    team.plans[lane] = plan;
    // Blocks that have arrived look at no table.
    if (plan.fits && plan.sealed() > 0)
      team.pages[lane] = page_for(plan, state, layer.table(slot), 0);
    if (reports && tokens > 0 && !plan.fits)
      record_error(threads, layer.record,
                   sequence_error(ErrorCode::OutOfCapacity, layer.layer, slot, state.length));
  }
  const bool works = tokens > 0 && plan.fits;
  const std::uint32_t work = threads.ballot(works);
  const std::uint32_t heavy = threads.ballot(works && !is_light(plan, layer));
  const std::uint32_t seals = threads.ballot(works && plan.seals > 0);
  const std::uint32_t frees = threads.ballot(works && plan.freed > 0);
  if (lane != 0) return;
  team.work = work;
  team.heavy = heavy;
  team.seals = seals & ~heavy;
  team.frees = frees | heavy;
}

/// Elements of one head that a thread writes: the first warp has other things to do.
class LightElements {
 public:
  static constexpr int together = 3;  ///< loads on their way

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
    return arguments_.layer.key_dim + arguments_.layer.value_dim;
  }
  /// Bits as they are, halves of 32 apart: nothing here waits for a load. Beyond the last element
  /// that once more.
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

/// The tokens of one head of a light sequence. The 16-bit blocks of all heads are alike. `elements`
/// has loaded the first ones.
template <class Threads>
KVTILT_HD void write_light(const Threads& threads, const AppendArguments& arguments,
                           const TeamShared& team, int member, int head, float key_limit,
                           float value_limit, LightElements& elements) {
  const LayerStorage& layer = arguments.layer;
  const AppendPlan& plan = team.plans[member];
  const int slot_of = team.slots[member];
  KVTILT_DEVICE_LOOP
  for (int token = 0; token < static_cast<int>(plan.tokens); ++token) {
    const std::int64_t position = plan.length + token;
    const bool sinks = position < layer.sink_tokens;
    const PageKind kind = sinks ? PageKind::Sinks : PageKind::Tail;
    int slot = static_cast<int>(sinks ? position : position - plan.tail_start);
    int block_slots = layer.page_tokens;
    std::byte* to;
    if (sinks) {
      block_slots = (layer.sink_tokens + tile_extent - 1) / tile_extent * tile_extent;
      to = layer.sinks(slot_of);
    } else {
      const int block = slot / block_slots;
      slot -= block * block_slots;
      to = layer.tail(slot_of, team.states[member].ring_head, block);
    }
    to += static_cast<std::int64_t>(head) *
          (static_cast<std::uint32_t>(layer.block_bytes[static_cast<int>(kind)]) /
           static_cast<std::uint32_t>(layer.kv_heads));
    KVTILT_DEVICE_LOOP
    for (int base = elements.first(); base < elements.count(); base = elements.next(base)) {
      if (token > 0 || base > elements.first())
        elements.load(team.first_rows[member] + token, base);
      KVTILT_DEVICE_UNROLL
      for (int i = 0; i < LightElements::together; ++i) {
        const int element = elements.element(base, i);
        if (element >= elements.count()) continue;
        const bool keys = element < layer.key_dim;
        const int dim = keys ? layer.key_dim : layer.value_dim;
        const int channel = keys ? element : element - layer.key_dim;
        const float limit = keys ? key_limit : value_limit;
        float x = elements.value(i, keys);
        if (!is_storable(x, limit)) {
          record_error(threads, layer.record,
                       {static_cast<std::uint32_t>(ErrorCode::InvalidValue), 1, layer.layer,
                        slot_of, position, head, element, x});
          x = storable(x, limit);
        }
        const FragmentPlace place = fragment_place(keys ? Role::Keys : Role::Values,
                                                   keys ? slot : channel, keys ? channel : slot);
        std::byte* const tile =
            to + (keys ? 0 : block_slots * layer.key_dim * static_cast<int>(sizeof(F16))) +
            (slot / tile_extent * tiles_along(dim) + channel / tile_extent) * fragment_tile_bytes;
        reinterpret_cast<F16*>(tile + place.lane * 16 + place.reg * 4)[place.half] =
            nearest_half(x);
      }
    }
  }
}

/// Position of the n-th bit that is set.
KVTILT_HD constexpr int nth_bit(std::uint32_t mask, int n) {
  int bit = 0;
  for (; (mask & 1u) == 0 || n > 0; mask >>= 1, ++bit) n -= static_cast<int>(mask & 1u);
  return bit;
}
KVTILT_HD constexpr int count_bits(std::uint32_t mask) {
  int count = 0;
  for (; mask != 0; mask &= mask - 1) ++count;
  return count;
}

/// Slice `item` of those in which the team's light sequences seal their pages.
KVTILT_HD inline SealJob light_job(const AppendArguments& arguments, const TeamShared& team,
                                   int item) {
  const LayerStorage& layer = arguments.layer;
  const int head_item = item / append_slices;
  const int nth = head_item / layer.kv_heads;
  const int head = head_item - nth * layer.kv_heads;
  const int member = nth_bit(team.seals, nth);
  const int slot = team.slots[member];
  const SequenceState& state = team.states[member];
  const HeadLayout& half = layer.head(PageKind::Tail, head);
  const HeadLayout& sealed = layer.head(PageKind::Sealed, head);
  const std::byte* from = layer.tail(slot, state.ring_head, 0) + half.offset;
  return {from + half.key.codes,
          from + half.value.codes,
          &sealed,
          layer.block(PageKind::Sealed, team.pages[member]) + sealed.offset,
          item % append_slices,
          append_slices};
}

/// How many of the team's blocks were here before: for one thread. What the block has read is then
/// free to be changed by the last one.
template <class Threads>
KVTILT_HD std::uint32_t arrive(const Threads& threads, const LayerStorage& layer,
                               const TeamShared& team) {
  threads.fence();
  return threads.atomic_add(layer.arrivals + team.slots[0], 1);
}

/// A warp of the last block publishes the states of sequences whose tables keep their order.
template <class Threads>
KVTILT_HD void publish_light(const Threads& threads, const LayerStorage& layer,
                             const TeamShared& team) {
  const int lane = threads.lane();
  if (lane == 0) layer.arrivals[team.slots[0]] = 0;
  if (((team.work & ~team.frees) >> lane & 1u) == 0) return;
  SequenceState state = team.states[lane];
  const int slot = team.slots[lane];
  finish_append(SingleThread{}, layer.placement(), team.plans[lane], layer.ring_blocks, state,
                layer.table(slot));
  layer.states[slot] = state;
}

/// The same for all sequences, by all threads.
template <class Threads>
KVTILT_HD void publish_team(const Threads& threads, const LayerStorage& layer,
                            const TeamShared& team) {
  if (threads.warp() == 0) publish_light(threads, layer, team);
  KVTILT_DEVICE_LOOP
  for (std::uint32_t left = team.frees; left != 0; left &= left - 1) {
    const int member = nth_bit(left, 0);
    SequenceState state = team.states[member];
    const int slot = team.slots[member];
    finish_append(threads, layer.placement(), team.plans[member], layer.ring_blocks, state,
                  layer.table(slot));
    if (threads.thread() == 0) layer.states[slot] = state;
  }
}

}  // namespace detail

}  // namespace kvtilt::cuda
