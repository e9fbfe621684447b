// SPDX-License-Identifier: MIT
/// Appends tokens to sequences of a device cache. A team of blocks serves 32 sequences of the
/// batch; each block writes sinks and tail of one kv head of one sequence. If a sequence gets few
/// tokens (light), the page that leaves its tail is sealed by all blocks of the team: several share
/// a head's page. If it gets more (heavy), its pages are sealed by the blocks that write its
/// tokens. The last block of a team to have read states and tables changes them. Other blocks may
/// still write tokens and pages then: only the kernels that follow read those.
///
/// Lengths, tables and the numbers of new tokens are read from device memory, so a captured graph
/// replays. The bytes do not depend on the order of blocks.
#pragma once

#include <kvtilt/cuda/cache/append_head.hpp>
#include <kvtilt/cuda/cache/append_light.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvtilt::cuda {

inline constexpr int append_threads = 128;

namespace detail {

KVTILT_HD constexpr int team_blocks(const AppendArguments& arguments) {
  return team_members(arguments.layer, arguments.batch.count) * arguments.layer.kv_heads;
}

}  // namespace detail

/// About the most tokens that a sequence gets, by which the host chooses between this kernel and
/// pack's: of `tokens`, what it was told of each sequence; if that is empty, the mean.
inline std::int64_t expected_tokens(std::int64_t rows, int sequences,
                                    std::span<const std::int32_t> tokens) {
  if (!tokens.empty()) return *std::max_element(tokens.begin(), tokens.end());
  return (rows + sequences - 1) / sequences;
}

/// Dynamic shared memory of a block, in bytes.
KVTILT_HD constexpr std::size_t append_shared_bytes(const LayerView& layer) {
  return sizeof(detail::TeamShared) + detail::head_shared_bytes(layer);
}
KVTILT_HD constexpr int append_blocks(const AppendArguments& arguments) {
  return (arguments.batch.count + append_team - 1) / append_team * detail::team_blocks(arguments);
}

/// Body of the kernel: append_blocks() blocks of append_threads threads, append_shared_bytes().
template <class Threads>
KVTILT_HD void append(const Threads& threads, const AppendArguments& arguments) {
  const LayerView& layer = arguments.layer;
  auto& team =
      *reinterpret_cast<detail::TeamShared*>(threads.shared() + detail::head_shared_bytes(layer));
  const int blocks = detail::team_blocks(arguments);
  // Subtracts repeatedly: the quotient is small, and a division takes longer.
  int block = threads.block();
  int first = 0;
  KVTILT_DEVICE_LOOP
  for (; block >= blocks; block -= blocks) first += append_team;
  // The first of three dependent loads: issued before the division below.
  const int looked_at = first + threads.thread();
  std::int32_t slot = -1;
  if (threads.thread() < append_team && looked_at < arguments.batch.count)
    slot = arguments.batch.slots[looked_at];
  const int member =
      static_cast<int>(static_cast<unsigned>(block) / static_cast<unsigned>(layer.kv_heads));
  const int head = block - member * layer.kv_heads;
  const detail::TeamPlace place{first, member, team_members(layer, arguments.batch.count), head};
  // Work that does not depend on the states overlaps with their loads.
  const int index = first + member;
  const bool exists = member < append_team && index < arguments.batch.count;
  std::byte* const seal_memory = threads.shared() + sizeof(detail::AppendShared);
  const HeadSlices& sealed = *reinterpret_cast<const HeadSlices*>(seal_memory);
  detail::LightElements elements(threads, arguments, head);
  std::int32_t page = -1;
  if (threads.warp() == 0)
    page = detail::plan_team(threads, arguments, place, slot, block == 0, team);
  else if (exists && arguments.rows.are_sound(index, arguments.keys.tokens) &&
           arguments.rows.count(index) > 0)
    elements.load(arguments.rows.first(index), elements.first());
  if (threads.warp() == 1)
    prepare_slice(threads, layer.slices[head], seal_memory, member & (layer.seal_slices - 1),
                  layer.seal_slices);
  threads.sync();
  if (team.work == 0) return;  // the same in all blocks of the team
  const bool seals = team.seal.slices > 0;
  detail::SliceFit fit;
  if (seals) {
    if (team.seal.slices != layer.seal_slices) {
      if (threads.thread() < 2)
        take_slice(threads.thread(), seal_memory, team.seal.slice, team.seal.slices,
                   threads.thread_count());
      threads.sync();
    }
    begin_slice(threads, team.seal.keys, team.seal.values, seal_memory, fit);
  }
  // Without heavy sequences or freed pages, the block has read all it needs of states and tables.
  const bool early = team.frees == 0;
  std::uint32_t before = 0;
  if (threads.warp() == 0) {
    if (page >= 0) team.seal.block = layer.block(PageKind::Sealed, page) + sealed.offset;
    threads.sync_warp();
    if (early && threads.thread() == 0) before = detail::arrive(threads, layer, team.counter());
  }
  if (exists && ((team.work & ~team.heavy) >> member & 1u) != 0 && threads.warp() > 0)
    detail::write_light(threads, arguments, team, member, head,
                        largest_magnitude(sealed.tensors[0].packed.format),
                        largest_magnitude(sealed.tensors[1].packed.format), elements);
  if (seals) {
    threads.sync();
    detail::finish_seal(threads, team, fit);
  }
  if (team.own_heavy &&
      detail::plan_head(threads, arguments, team.own_index, team.own_head, false)) {
    const auto& shared = *reinterpret_cast<const detail::AppendShared*>(threads.shared());
    const detail::TailBlocks own = detail::all_blocks(shared.work.plan, layer);
    KVTILT_DEVICE_LOOP
    for (std::int32_t i = own.first; i < own.last; ++i) {
      detail::SealJob job;
      if (detail::fill_block(threads, shared.arguments, shared.work, i, job))
        detail::seal_page(threads, job, team);
    }
  }
  const std::uint32_t last = static_cast<std::uint32_t>(blocks) - 1;
  if (early) {
    if (threads.warp() != 0 || threads.shuffle(before, 0) != last) return;
    threads.fence();      // of the lane that arrived,
    threads.sync_warp();  // and thereby of the others: a shuffle does not order memory
    detail::publish_light(threads, layer, team);
    return;
  }
  threads.sync();
  if (threads.thread() == 0) {
    team.last = detail::arrive(threads, layer, team.counter()) == last;
    threads.fence();
  }
  threads.sync();
  if (team.last) detail::publish_team(threads, layer, team);
}

}  // namespace kvtilt::cuda
