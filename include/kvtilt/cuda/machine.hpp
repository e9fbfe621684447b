// SPDX-License-Identifier: MIT
/// Numbers that measuring decides, by architecture. Measured is an H200 (bench/cuda, results in
/// bench/results/h200-*.json); others have its numbers as far as their registers go.
#pragma once

#include <kvtilt/core/config.hpp>

/// Whether kernels for 9.0 and later let the kernel behind them in the stream start while they run, and
/// start so themselves ("programmatic dependent launch"). An engine whose own kernels are launched like
/// that must have them execute griddepcontrol.wait before they touch what kernels in front write; if
/// some cannot, it defines this as 0, in all of its files.
#ifndef KVTILT_CUDA_EARLY_START
#define KVTILT_CUDA_EARLY_START 1
#endif

namespace kvtilt::cuda {

struct MachineTraits {
  // Blocks on a multiprocessor that kernels leave registers for.
  int append_blocks = 4;
  int pack_blocks = 4;  ///< of pack's kernel without MinMse's search
  int attend_blocks = 3;
  int prefill_blocks = 2;
  int unpack_blocks = 6;

  /// Whether chunks' kernels have sealed pages copied to shared memory, as they are stored, before they
  /// decode them: with bulk copies, which no warp waits to start.
  bool prefill_copies = true;

  /// Of a multiprocessor's attention, under way at a time: more of it or more stages cost up to 5 %
  /// (attend_bench, rows tuning).
  int attend_bytes = 60 << 10;
  int attend_stages = 2;  ///< of a warp's ring
  int most_stages = 4;
  /// Units that an item costs a block beyond its own, where blocks get equal stretches: queries to
  /// load, the first units to wait for, parts to merge. 8 us, at 0.5 us a unit.
  int attend_item_units = 16;
  /// Parts that a block merges while a warp works on one unit: an estimate, 0.05 us each.
  int attend_merged_parts = 10;
};

/// architecture  compute capability, 10 x major + minor
KVTILT_HD constexpr MachineTraits machine_traits(int architecture) {
  MachineTraits traits;
  if (architecture < 90) {
    traits.most_stages = 2;  // waits for cp.async count stages: wait_stage()
    traits.prefill_copies = false;
  }
  // As many as shared memory has room for, with pages of 64 tokens and 128 channels. Other
  // architectures have room for four or fewer.
  if (architecture >= 90 && architecture < 120) traits.pack_blocks = 6;
  if (architecture / 10 != 9) traits.unpack_blocks = 5;  // with 6 registers would spill
  return traits;
}

/// Of the pass that compiles; the host's sees sm_90, and asks the device instead.
#if defined(__CUDA_ARCH__)
inline constexpr MachineTraits compiled_machine = machine_traits(__CUDA_ARCH__ / 10);
#else
inline constexpr MachineTraits compiled_machine = machine_traits(90);
#endif

}  // namespace kvtilt::cuda
