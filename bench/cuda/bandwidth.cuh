// SPDX-License-Identifier: MIT
/// Probes of the memory bandwidth: plain loads, and bulk copies of pages to shared memory.
#pragma once

#include "probe_support.cuh"

#include <numeric>
#include <random>

namespace kvtilt::bench {

/// 2 CTAs of 512 threads per SM with 8 loads of 16 bytes per thread: 128 KiB in flight per SM.
constexpr int plain_threads = 512;
constexpr int plain_loads = 8;

__global__ void __launch_bounds__(plain_threads, 2)
    read_plain(const uint4* data, std::size_t count, std::uint32_t* sink) {
  const std::size_t step = std::size_t{gridDim.x} * plain_threads * plain_loads;
  std::uint32_t mix = 0;
  for (std::size_t at = std::size_t{blockIdx.x} * plain_threads * plain_loads + threadIdx.x;
       at + plain_threads * (plain_loads - 1) < count; at += step) {
    uint4 items[plain_loads];
#pragma unroll
    for (int i = 0; i < plain_loads; ++i) items[i] = __ldcs(data + at + i * plain_threads);
#pragma unroll
    for (int i = 0; i < plain_loads; ++i) mix ^= items[i].x ^ items[i].y ^ items[i].z ^ items[i].w;
  }
  // Never true for the pool's contents, but the compiler cannot know that and keeps the loads.
  if (mix == 0x9e3779b9u) *sink = mix;
}

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void init_barrier(std::uint32_t barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barrier));
}

__device__ inline void start_page(std::uint32_t stage, const void* page, int bytes,
                                  std::uint32_t barrier) {
  constexpr std::uint64_t evict_first = 0x12F0000000000000ull;
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;" ::"r"(stage),
      "l"(page), "r"(bytes), "r"(barrier), "l"(evict_first)
      : "memory");
}

__device__ inline void await_page(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t is_done = 0;
  while (!is_done)
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(is_done)
        : "r"(barrier), "r"(parity)
        : "memory");
}

constexpr int bulk_warps = 4;

/// Reads pages by bulk copies. Every warp has its own ring of stages, so that no warp waits for
/// another. The sum of the pages' first words shows that each page arrived once.
template <int Stages>
__global__ void __launch_bounds__(bulk_warps * 32)
    read_pages(const std::uint8_t* pool, int page_bytes, const std::int32_t* table, int pages,
               unsigned long long* sum) {
  extern __shared__ __align__(128) std::uint8_t memory[];
  __shared__ std::uint64_t barriers[bulk_warps][Stages];
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  std::uint8_t* ring = memory + warp * Stages * page_bytes;
  if (lane == 0) {
    for (int stage = 0; stage < Stages; ++stage)
      init_barrier(shared_address(&barriers[warp][stage]));
    // Makes the barriers visible to the copy engine.
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncwarp();

  const int step = gridDim.x * bulk_warps;
  const int first = blockIdx.x * bulk_warps + warp;
  const auto fetch = [&](int page, int stage) {
    if (page < pages && lane == 0)
      start_page(shared_address(ring + stage * page_bytes),
                 pool + std::size_t(table[page]) * page_bytes, page_bytes,
                 shared_address(&barriers[warp][stage]));
  };
#pragma unroll
  for (int stage = 0; stage < Stages; ++stage) fetch(first + stage * step, stage);

  unsigned long long found = 0;
  std::uint32_t parity = 0;
  int stage = 0;
  for (int page = first; page < pages; page += step) {
    await_page(shared_address(&barriers[warp][stage]), parity);
    const auto* words = reinterpret_cast<const std::uint32_t*>(ring + stage * page_bytes);
    const std::uint32_t word = *const_cast<const volatile std::uint32_t*>(words + lane);
    if (lane == 0) found += word;
    // All lanes have read the stage before lane 0 has it overwritten.
    __syncwarp();
    fetch(page + Stages * step, stage);
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
  if (lane == 0) atomicAdd(sum, found);
}

__global__ void number_pages(std::uint8_t* pool, int page_bytes, int pages) {
  const int page = blockIdx.x * blockDim.x + threadIdx.x;
  if (page < pages) *reinterpret_cast<std::uint32_t*>(pool + std::size_t(page) * page_bytes) = page;
}

class Bandwidth {
 public:
  Bandwidth(Report& report, int sms) : report_(report), sms_(sms), pool_(pool_bytes) {
    KVTILT_CHECK(cudaMemset(pool_.data(), 0x5a, pool_bytes));
  }

  void run() {
    plain();
    copy();
    number(6912);
    bulk<3>("shuffled", 2);
    bulk<3>("shuffled", 3);  // may not fit in shared memory; the row then says so
    bulk<2>("shuffled", 3);
    bulk<2>("shuffled", 2);
    bulk<4>("shuffled", 2);
    bulk<4>("shuffled", 1);
    bulk<3>("in_order", 2);
    number(8192);
    bulk<3>("shuffled", 2);
    bulk<2>("shuffled", 3);
    bulk<4>("shuffled", 1);
    number(4608);
    bulk<3>("shuffled", 3);
    bulk<4>("shuffled", 3);
    bulk<4>("shuffled", 2);
  }

 private:
  /// A hundred times the L2, so that a launch finds nothing of the previous one there.
  static constexpr std::size_t pool_bytes = std::size_t{5} << 30;
  static constexpr int launches = 21;

  void plain() {
    DeviceArray<std::uint32_t> sink(1);
    constexpr std::size_t pass = sizeof(uint4) * plain_threads * plain_loads;
    static_assert(pool_bytes % pass == 0);
    const double seconds = median_seconds(launches, [&] {
      read_plain<<<2 * sms_, plain_threads>>>(reinterpret_cast<const uint4*>(pool_.data()),
                                              pool_bytes / sizeof(uint4), sink.data());
    });
    report_.add("read.plain16", pool_bytes / seconds * 1e-9, "GB/s");
  }

  /// Counts the bytes read and the bytes written.
  void copy() {
    const double seconds = median_seconds(launches, [&] {
      KVTILT_CHECK(cudaMemcpyAsync(pool_.data(), pool_.data() + pool_bytes / 2, pool_bytes / 2,
                                   cudaMemcpyDeviceToDevice));
    });
    report_.add("copy.device", pool_bytes / seconds * 1e-9, "GB/s");
  }

  void number(int page_bytes) {
    page_bytes_ = page_bytes;
    pages_ = static_cast<int>(pool_bytes / page_bytes);
    number_pages<<<(pages_ + 255) / 256, 256>>>(pool_.data(), page_bytes, pages_);
    finish();
  }

  template <int Stages>
  void bulk(const std::string& order, int ctas) {
    const std::string name = "read.bulk." + order + ".page" + std::to_string(page_bytes_) +
                             ".stages" + std::to_string(Stages) + ".ctas" + std::to_string(ctas);
    const int memory = bulk_warps * Stages * page_bytes_;
    int resident = 0;
    const auto kernel = read_pages<Stages>;
    KVTILT_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, memory));
    KVTILT_CHECK(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, bulk_warps * 32, memory));
    if (resident < ctas) {
      report_.add_text(name, "only " + std::to_string(resident) + " CTAs fit an SM");
      return;
    }
    std::vector<std::int32_t> table(pages_);
    std::iota(table.begin(), table.end(), 0);
    if (order == "shuffled") std::shuffle(table.begin(), table.end(), std::mt19937(7));
    const DeviceArray<std::int32_t> pages(table);
    const DeviceArray<unsigned long long> sum(1);
    KVTILT_CHECK(cudaMemset(sum.data(), 0, sizeof(unsigned long long)));
    int runs = 0;
    const double seconds = median_seconds(launches, [&] {
      kernel<<<ctas * sms_, bulk_warps * 32, memory>>>(pool_.data(), page_bytes_, pages.data(),
                                                       pages_, sum.data());
      ++runs;
    });
    if (sum.read()[0] != 1ull * runs * pages_ * (pages_ - 1ull) / 2) {
      report_.fail(name, "wrong sum of pages");
      return;
    }
    report_.add(name, 1.0 * pages_ * page_bytes_ / seconds * 1e-9, "GB/s");
  }

  Report& report_;
  int sms_;
  DeviceArray<std::uint8_t> pool_;
  int page_bytes_ = 0;
  int pages_ = 0;
};

}  // namespace kvtilt::bench
