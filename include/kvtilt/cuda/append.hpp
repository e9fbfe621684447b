// SPDX-License-Identifier: MIT
/// Adds tokens to sequences of a device cache. Teams of blocks take 32 sequences each. A block
/// writes the sinks and the tail of one kv head of one sequence. What a few tokens push out of the
/// tail is sealed by all blocks of the team: several share a head's page. Sequences that get more
/// have their pages sealed where the tokens are written. The last block of a team that has read the
/// states and tables changes them. What the others still write is seen by the kernels that follow.
///
/// Nothing here depends on the host: lengths, tables and the numbers of new tokens are in device
/// memory, so a captured graph replays. The bytes do not depend on the order of blocks.
#pragma once

#include <kvtilt/core/tensor_view.hpp>
#include <kvtilt/cuda/device_record.hpp>
#include <kvtilt/cuda/input_rows.hpp>
#include <kvtilt/cuda/layer_storage.hpp>
#include <kvtilt/cuda/seal_head.hpp>
#include <kvtilt/cuda/sequence_state.hpp>
#include <kvtilt/quant/format.hpp>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

struct AppendArguments {
  LayerStorage layer;
  Batch batch;  ///< no sequence twice
  /// Device memory, [rows, kv_heads, dim], any strides.
  TensorView keys;
  TensorView values;
  /// Device: rows of sequence i are indptr[i] to indptr[i + 1] - 1. Null: as many for each.
  const std::int32_t* indptr;
  int tokens_per_sequence;

  [[nodiscard]] KVTILT_HD std::int64_t first_row(int sequence) const {
    return indptr != nullptr ? indptr[sequence]
                             : static_cast<std::int64_t>(sequence) * tokens_per_sequence;
  }
  [[nodiscard]] KVTILT_HD std::int64_t tokens(int sequence) const {
    return indptr != nullptr ? indptr[sequence + 1] - indptr[sequence] : tokens_per_sequence;
  }
};

namespace detail {

/// One kv head of one sequence that tokens are added to.
struct AppendHead {
  int sequence;  ///< slot
  int head;
  std::int64_t first_row;  ///< of the new tokens
  SequenceState state;     ///< before
  PageSlot* table;
  AppendPlan plan;
};

/// What the threads of a block share: in registers it would be in the way of the search for scales.
struct alignas(16) AppendShared {
  AppendArguments arguments;  ///< as constants they would be kept in registers, all of them
  AppendHead work;
  InputTask input;  ///< being written
  bool works;
  bool last;  ///< of the sequence's blocks to finish
};

}  // namespace detail

inline constexpr int append_threads = 128;

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

/// Shared memory to append to one head.
KVTILT_HD constexpr std::size_t head_shared_bytes(const LayerStorage& layer) {
  return sizeof(AppendShared) + static_cast<std::size_t>(layer.seal_bytes);
}

KVTILT_HD constexpr int team_blocks(const AppendArguments& arguments) {
  const int count = arguments.batch.count < append_team ? arguments.batch.count : append_team;
  return (count > append_slices ? count : append_slices) * arguments.layer.kv_heads;
}

}  // namespace detail

/// Dynamic shared memory of a block.
KVTILT_HD constexpr std::size_t append_shared_bytes(const LayerStorage& layer) {
  return sizeof(detail::TeamShared) + detail::head_shared_bytes(layer);
}
KVTILT_HD constexpr int append_blocks(const AppendArguments& arguments) {
  return (arguments.batch.count + append_team - 1) / append_team * detail::team_blocks(arguments);
}

namespace detail {

/// Loads state and plan; false if there is nothing to do: in all blocks of a sequence alike. `reports`:
/// whether this block records that tokens do not fit.
template <class Threads>
KVTILT_HD bool plan_head(const Threads& threads, const AppendArguments& constants, int index,
                         int head, bool reports) {
  AppendShared& shared = *reinterpret_cast<AppendShared*>(threads.shared());
  constexpr int words = sizeof(AppendArguments) / 4;
  for (int i = threads.thread(); i < words; i += threads.thread_count())
    reinterpret_cast<std::uint32_t*>(&shared.arguments)[i] =
        reinterpret_cast<const std::uint32_t*>(&constants)[i];
  threads.sync();
  const AppendArguments& arguments = shared.arguments;
  const LayerStorage& layer = arguments.layer;
  if (threads.thread() == 0) {
    AppendHead& work = shared.work;
    work.sequence = arguments.batch.slots[index];
    work.head = head;
    work.first_row = arguments.first_row(index);
    work.state = layer.states[work.sequence];
    work.table = layer.table(work.sequence);
    const std::int64_t tokens = arguments.tokens(index);
    if (tokens > 0) work.plan = plan_append(layer.placement(), work.state, work.table, tokens);
    shared.works = tokens > 0 && work.plan.fits;
    if (reports && tokens > 0 && !work.plan.fits)
      record_error(threads, layer.record,
                   sequence_error(ErrorCode::OutOfCapacity, layer.layer, work.sequence,
                                  work.state.length));
  }
  threads.sync();
  return shared.works;
}

/// Which of the new tokens a 16-bit block holds.
struct NewTokens {
  std::int64_t first;
  int slot;
  int count;
};

/// Of a block whose `slots` slots begin at position `start`.
KVTILT_HD constexpr NewTokens new_tokens_in(const AppendPlan& plan, std::int64_t start, int slots) {
  const std::int64_t from = plan.length > start ? plan.length : start;
  const std::int64_t end = plan.length + plan.tokens;
  const std::int64_t until = end < start + slots ? end : start + slots;
  return {from - plan.length, static_cast<int>(from - start),
          until > from ? static_cast<int>(until - from) : 0};
}

/// Blocks of the tail with new tokens, or that are sealed: numbered from where the tail starts.
struct TailBlocks {
  std::int64_t first;
  std::int64_t last;  ///< one past
};

KVTILT_HD constexpr TailBlocks tail_blocks(const AppendPlan& plan, int page_tokens) {
  const std::int64_t in_tail = plan.length + plan.tokens - plan.tail_start;
  const std::int64_t before = plan.length - plan.tail_start;
  return {plan.seals > 0 || before < 0 ? 0 : before / page_tokens,
          in_tail <= 0 ? 0 : (in_tail + page_tokens - 1) / page_tokens};
}

/// The page of the pool that page `index` is sealed into, at the head's block.
KVTILT_HD inline std::byte* sealed_block(const LayerStorage& layer, const AppendHead& work,
                                         std::int32_t index) {
  const std::int32_t page = page_for(work.plan, work.state, work.table, index - work.plan.skipped);
  return layer.block(PageKind::Sealed, page) + layer.head(PageKind::Sealed, work.head).offset;
}

/// Where one head's 16-bit keys and values stand.
struct HalfBlock {
  std::byte* keys;
  std::byte* values;
};

/// Writes new tokens to the slots of a 16-bit block.
template <class Threads>
KVTILT_HD void write_tokens(const Threads& threads, const AppendArguments& arguments,
                            const AppendHead& work, const HeadLayout& half, HalfBlock to,
                            const NewTokens& added) {
  const LayerStorage& layer = arguments.layer;
  const HeadLayout& sealed = layer.head(PageKind::Sealed, work.head);
  AppendShared& shared = *reinterpret_cast<AppendShared*>(threads.shared());
  KVTILT_DEVICE_LOOP
  for (int tensor = 0; tensor < 2; ++tensor) {
    threads.sync();
    if (threads.thread() == 0) {
      const bool keys = tensor == 0;
      shared.input = {
          keys ? Role::Keys : Role::Values,
          keys ? arguments.keys : arguments.values,
          work.first_row + added.first,
          largest_magnitude(keys ? sealed.key.format : sealed.value.format),
          {work.sequence, work.head, keys ? 0 : layer.key_dim, work.plan.length + added.first},
          keys ? half.key.matrix : half.value.matrix,
          keys ? to.keys : to.values,
          added.slot,
          added.count};
    }
    threads.sync();
    write_input(threads, layer, shared.input);
  }
}

/// A head's part of a page to seal, or a slice of it.
struct SealJob {
  const std::byte* keys;
  const std::byte* values;
  const HeadLayout* packed;
  std::byte* block;
  int slice;
  int slices;
};

/// Block `index` of the tail, -1 being the sinks, gets its new tokens. Returns whether it leaves the
/// tail for a page that is kept: then its tokens are visible to all, and the job is to seal it.
template <class Threads>
KVTILT_HD bool fill_block(const Threads& threads, const AppendArguments& arguments,
                          const AppendHead& work, std::int64_t index, std::byte* staged,
                          SealJob& job) {
  const LayerStorage& layer = arguments.layer;
  const AppendPlan& plan = work.plan;
  const bool sinks = index < 0;
  const HeadLayout& half = layer.head(sinks ? PageKind::Sinks : PageKind::Tail, work.head);
  const NewTokens added =
      sinks ? new_tokens_in(plan, 0, layer.sink_tokens)
            : new_tokens_in(plan, plan.tail_start + index * layer.page_tokens, layer.page_tokens);
  HalfBlock to;
  if (staged != nullptr) {
    to = {staged, staged + code_bytes(half.key.matrix, half_bits)};
  } else {
    std::byte* block = sinks ? layer.sinks(work.sequence)
                             : layer.tail(work.sequence, work.state.ring_head,
                                          static_cast<int>(index % layer.ring_blocks));
    block += half.offset;
    to = {block + half.key.codes, block + half.value.codes};
  }
  if (added.count > 0) write_tokens(threads, arguments, work, half, to, added);
  if (sinks || index >= plan.seals) return false;
  threads.sync();
  if (index < plan.skipped) return false;
  job = {to.keys,
         to.values,
         &layer.head(PageKind::Sealed, work.head),
         sealed_block(layer, work, static_cast<std::int32_t>(index)),
         0,
         1};
  return true;
}

template <class Threads>
KVTILT_HD void seal(const Threads& threads, const SealJob& job) {
  seal_head(threads, job.keys, job.values, *job.packed, job.block,
            threads.shared() + sizeof(AppendShared), job.slice, job.slices);
  threads.sync();
}

/// The 16-bit blocks `first` to last - 1 of the tail, -1 being the sinks, except for `elsewhere`:
/// each gets its new tokens, and is sealed if it leaves the tail. Staged, a block is not in the tail
/// but in shared memory: all of its tokens are new, and it is sealed.
template <class Threads>
KVTILT_HD void fill_blocks(const Threads& threads, const AppendArguments& arguments,
                           const AppendHead& work, TailBlocks range, TailBlocks elsewhere,
                           std::byte* staged) {
  KVTILT_DEVICE_LOOP
  for (std::int64_t index = range.first; index < range.last; ++index) {
    if (index >= elsewhere.first && index < elsewhere.last) {
      index = elsewhere.last - 1;
      continue;
    }
    SealJob job;
    if (fill_block(threads, arguments, work, index, staged, job)) seal(threads, job);
  }
}

/// Everything that append does to a head.
KVTILT_HD constexpr TailBlocks all_blocks(const AppendPlan& plan, const LayerStorage& layer) {
  const TailBlocks tail = tail_blocks(plan, layer.page_tokens);
  return {plan.length < layer.sink_tokens ? -1 : tail.first, tail.last};
}

/// The last of the `expected` blocks of a sequence makes the rest visible.
template <class Threads>
KVTILT_HD void arrive(const Threads& threads, const AppendArguments& arguments,
                      std::uint32_t expected) {
  const LayerStorage& layer = arguments.layer;
  AppendShared& shared = *reinterpret_cast<AppendShared*>(threads.shared());
  const AppendHead& work = shared.work;
  threads.sync();
  if (threads.thread() == 0) {
    std::uint32_t* arrivals = layer.arrivals + work.sequence;
    threads.fence();
    shared.last = threads.atomic_add(arrivals, 1) + 1 == expected;
    threads.fence();
    if (shared.last) *arrivals = 0;
  }
  threads.sync();
  if (!shared.last) return;
  SequenceState state = work.state;
  finish_append(threads, layer.placement(), work.plan, layer.ring_blocks, state, work.table);
  if (threads.thread() == 0) layer.states[work.sequence] = state;
}

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
    tokens = arguments.tokens(index);
    const SequenceState state = layer.states[slot];
    if (tokens > 0) plan = plan_append(layer.placement(), state, layer.table(slot), tokens);
    team.slots[lane] = slot;
    team.first_rows[lane] = arguments.first_row(index);
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

/// Body of the kernel: append_blocks() blocks of append_threads threads, append_shared_bytes().
template <class Threads>
KVTILT_HD void append(const Threads& threads, const AppendArguments& arguments) {
  const LayerStorage& layer = arguments.layer;
  auto& team =
      *reinterpret_cast<detail::TeamShared*>(threads.shared() + detail::head_shared_bytes(layer));
  const int blocks = detail::team_blocks(arguments);
  const int team_number = threads.block() / blocks;
  const int block = threads.block() - team_number * blocks;
  const int first = team_number * append_team;
  const int member = block / layer.kv_heads;
  const int head = block - member * layer.kv_heads;
  // What does not depend on the states is on its way while they are.
  const int index = first + member;
  const bool exists = member < append_team && index < arguments.batch.count;
  const HeadLayout& sealed = layer.head(PageKind::Sealed, head);
  Format key_format{};
  Format value_format{};
  key_format.bits = sealed.key.format.bits;
  value_format.bits = sealed.value.format.bits;
  detail::LightElements elements(threads, arguments, head);
  if (threads.warp() == 0)
    detail::plan_team(threads, arguments, first, block == 0, team);
  else if (exists && arguments.tokens(index) > 0)
    elements.load(arguments.first_row(index), elements.first());
  threads.sync();
  // Without heavy sequences the block has read all it needs.
  const bool early = team.frees == 0;
  std::uint32_t before = 0;
  if (early && threads.thread() == 0) before = detail::arrive(threads, layer, team);
  const auto& shared = *reinterpret_cast<const detail::AppendShared*>(threads.shared());
  detail::TailBlocks own{0, 0};
  if (exists && (team.work >> member & 1u) != 0) {
    if ((team.heavy >> member & 1u) != 0) {
      if (detail::plan_head(threads, arguments, index, head, false))
        own = detail::all_blocks(shared.work.plan, layer);
    } else if (threads.warp() > 0) {
      key_format.bits = opaque(key_format.bits);  // not looked at before the states are there
      value_format.bits = opaque(value_format.bits);
      detail::write_light(threads, arguments, team, member, head, largest_magnitude(key_format),
                          largest_magnitude(value_format), elements);
    }
  }
  const int items = detail::count_bits(team.seals) * layer.kv_heads * append_slices;
  int item = block;
  KVTILT_DEVICE_LOOP
  while (true) {  // one call of seal(): its code is long
    detail::SealJob job;
    if (own.first < own.last) {
      if (!detail::fill_block(threads, shared.arguments, shared.work, own.first++, nullptr, job))
        continue;
    } else if (item < items) {
      job = detail::light_job(arguments, team, item);
      item += blocks;
    } else {
      break;
    }
    detail::seal(threads, job);
  }
  const std::uint32_t last = static_cast<std::uint32_t>(blocks) - 1;
  if (early) {
    if (threads.warp() != 0 || threads.shuffle(before, 0) != last) return;
    threads.fence();
    detail::publish_light(threads, layer, team);
    return;
  }
  threads.sync();
  if (threads.thread() == 0) {
    team.last = detail::arrive(threads, layer, team) == last;
    threads.fence();
  }
  threads.sync();
  if (team.last) detail::publish_team(threads, layer, team);
}

}  // namespace kvtilt::cuda
