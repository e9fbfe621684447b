// SPDX-License-Identifier: MIT
// Calls every member of DeviceThreads: the assembler sees only what a kernel calls.
#include <kvtilt/cuda/threads.cuh>

#include <cstddef>
#include <cstdint>

using kvtilt::cuda::DeviceThreads;

extern "C" __global__ void collectives(std::uint32_t* cells, double* wide) {
  const DeviceThreads threads = DeviceThreads::after_previous_kernel();
  std::uint32_t value = cells[threads.thread() + threads.thread_count() * threads.block()];
  value += threads.shuffle(value, threads.warp());
  value += threads.shuffle_xor(value, 16);
  value += threads.ballot(value > 5);
  value += threads.max_over_warp(value);
  value += threads.min_over_warp(value);
  wide[threads.thread()] = threads.shuffle(wide[threads.thread()], 3);
  threads.prefetch(reinterpret_cast<const std::byte*>(wide));
  threads.sync_warp();
  reinterpret_cast<std::uint32_t*>(threads.shared())[threads.thread()] = value;
  threads.sync();
  value = reinterpret_cast<std::uint32_t*>(threads.shared())[threads.thread() ^ 1];
  threads.fence();
  value += threads.atomic_add(cells + threads.block_count(), value);
  value += threads.atomic_count_release(cells + threads.block_count());
  value += threads.atomic_add_acquire_release(cells + threads.block_count(), value);
  value += threads.atomic_compare_and_swap(cells + threads.lane(), 0, value);
  cells[threads.thread()] = value;
}

extern "C" __global__ void products(const std::uint32_t* cells, float* sums) {
  const DeviceThreads threads = DeviceThreads::after_previous_kernel();
  float c[4] = {};
  std::uint32_t a[4];
  for (int i = 0; i < 4; ++i) a[i] = cells[32 * i + threads.lane()];
  threads.mma(c, a, threads.transpose(a[0]), threads.transpose(a[1]));
  for (int i = 0; i < 4; ++i) sums[32 * i + threads.lane()] = c[i];
}

extern "C" __global__ void stages(const std::byte* from, std::uint32_t* sums, int turns) {
  const DeviceThreads threads = DeviceThreads::after_previous_kernel();
  auto* const barriers = reinterpret_cast<std::uint64_t*>(threads.shared());
  std::byte* const room = threads.shared() + 128;
  if (threads.thread() < 2) threads.prepare_stage(barriers + threads.thread());
  threads.sync();
  threads.sync_warp();
  const auto fill = [&](int turn) {
    threads.begin_stage(barriers + turn % 2, 512);
    threads.copy_to_stage(room + turn % 2 * 512, from + turn * 512, 512, barriers + turn % 2);
    threads.end_stage();
  };
  fill(0);
  std::uint32_t sum = 0;
  for (int turn = 0; turn < turns; ++turn) {
    fill(turn + 1);
    threads.wait_stage<1>(barriers + turn % 2, static_cast<std::uint32_t>(turn / 2 % 2));
    sum += reinterpret_cast<const std::uint32_t*>(room + turn % 2 * 512)[threads.lane()];
    threads.sync_warp();
  }
  sums[threads.lane()] = sum;
}
