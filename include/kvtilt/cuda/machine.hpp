// SPDX-License-Identifier: MIT
/// Tuning constants by architecture, measured on an H200 (bench/cuda, results in
/// bench/results/h200-*.json). Other architectures use the same as far as their registers allow.
#pragma once

#include <kvtilt/core/config.hpp>

/// Whether kernels for 9.0 and later use programmatic dependent launch (PDL): they let the next
/// kernel of the stream start while they run, and start that way themselves. If an engine launches
/// kernels of its own that way, each must execute griddepcontrol.wait before it touches what preceding kernels write,
/// and even if it touches nothing: our kernels wait for the kernel in front of them and, through its
/// wait, for those before. If one cannot, the engine defines this as 0, in all of its files.
#ifndef KVTILT_CUDA_PDL
#define KVTILT_CUDA_PDL 1
#endif

namespace kvtilt::cuda {

struct MachineTraits {
  // Blocks per multiprocessor that the kernels' registers must allow (__launch_bounds__).
  int append_blocks = 4;
  int pack_blocks = 4;  ///< of pack's kernel without MinMse's search
  int attend_blocks = 3;
  int prefill_blocks = 2;
  int unpack_blocks = 6;

  /// Whether prefill kernels copy sealed pages as stored to shared memory before they decode them:
  /// by bulk copies, whose issue stalls no warp.
  bool prefill_copies = true;

  /// Bytes per multiprocessor that decode attention keeps in flight: more of them or more stages
  /// cost up to 5 % (attend_bench, rows tuning).
  int attend_bytes = 60 << 10;
  int attend_stages = 2;  ///< of a warp's ring of buffers
  int most_stages = 4;
  /// Fixed cost of an item (cuda/attention/work.hpp), in units, where blocks get equal amounts of
  /// work: loading queries, waiting for the first units, merging parts. 8 us, at 0.5 us a unit.
  int attend_item_units = 16;
  /// Partial results that a block merges in the time of one unit of a warp: estimated, 0.05 us
  /// each.
  int attend_merged_parts = 10;
};

/// architecture  compute capability, 10 x major + minor
KVTILT_HD constexpr MachineTraits machine_traits(int architecture) {
  MachineTraits traits;
  if (architecture < 90) {
    traits.most_stages = 2;  // cp.async waits count stages at compile time: wait_stage()
    traits.prefill_copies = false;
  }
  // As many as shared memory has room for, with pages of 64 tokens and 128 channels. Other
  // architectures have room for four or fewer.
  if (architecture >= 90 && architecture < 120) traits.pack_blocks = 6;
  if (architecture / 10 != 9) traits.unpack_blocks = 5;  // registers would spill with 6 blocks
  return traits;
}

/// Traits of the architecture being compiled, for kernels. Host code uses machine_traits() of its
/// device: here it would get those of 9.0.
#if defined(__CUDA_ARCH__)
inline constexpr MachineTraits compiled_machine = machine_traits(__CUDA_ARCH__ / 10);
#else
inline constexpr MachineTraits compiled_machine = machine_traits(90);
#endif

}  // namespace kvtilt::cuda
