// SPDX-License-Identifier: MIT
/// What kernel bodies use of the hardware: thread numbers, barriers, shuffles, atomics, copies,
/// mma. Bodies are templates over this class: on the GPU it is empty and a member is an instruction
/// or two; tests replace it by an emulator with the same members
/// (tests/support/emulated_threads.hpp), so that all bodies run, and are debugged, on the host.
#pragma once

#include <kvtilt/core/config.hpp>
#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/machine.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "kvtilt's kernels need compute capability 8.0 or later: compile for no earlier architecture"
#endif

namespace kvtilt::cuda {

class DeviceThreads {
 public:
  /// Lets the next kernel of the stream start, then waits until the preceding ones have ended; what
  /// they wrote is visible then. Every kernel calls it first, because launch() starts kernels
  /// with PDL.
  __device__ static DeviceThreads after_previous_kernel() {
#if __CUDA_ARCH__ >= 900 && KVTILT_CUDA_PDL
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    return {};
  }

  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int thread_count() const { return static_cast<int>(blockDim.x); }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) % 32; }
  __device__ int warp() const { return static_cast<int>(threadIdx.x) / 32; }
  /// Blocks are numbered along one axis.
  __device__ int block() const { return static_cast<int>(blockIdx.x); }
  __device__ int block_count() const { return static_cast<int>(gridDim.x); }

  /// Dynamic shared memory, 128-byte aligned.
  __device__ std::byte* shared() const {
    extern __shared__ __align__(128) std::byte kvtilt_shared[];
    return kvtilt_shared;
  }

  __device__ void sync() const { __syncthreads(); }
  __device__ void sync_warp() const { __syncwarp(); }
  /// Writes before it are visible to any block that reads a write made after it and then calls
  /// fence() itself.
  __device__ void fence() const { __threadfence(); }

  // All 32 lanes of a warp must call these.
  template <class T>
  __device__ T shuffle(T value, int lane) const {
    return __shfl_sync(0xffffffffu, value, lane);
  }
  template <class T>
  __device__ T shuffle_xor(T value, int mask) const {
    return __shfl_xor_sync(0xffffffffu, value, mask);
  }
  __device__ std::uint32_t ballot(bool vote) const { return __ballot_sync(0xffffffffu, vote); }
  __device__ std::uint32_t max_over_warp(std::uint32_t value) const {
    return __reduce_max_sync(0xffffffffu, value);
  }
  __device__ std::uint32_t min_over_warp(std::uint32_t value) const {
    return __reduce_min_sync(0xffffffffu, value);
  }

  /// Atomics: each returns the previous value.
  __device__ std::uint32_t atomic_add(std::uint32_t* where, std::uint32_t value) const {
    return atomicAdd(where, value);
  }
  __device__ std::uint64_t atomic_add(std::uint64_t* where, std::uint64_t value) const {
    static_assert(sizeof(unsigned long long) == sizeof(std::uint64_t));
    return atomicAdd(reinterpret_cast<unsigned long long*>(where), value);
  }
  /// Adds 1 to a counter below 2^31 - 1. What the block read or wrote before it happens before what
  /// another block does after it sees the sum and calls fence(). Unlike a fence(), it does not
  /// invalidate L1. atom.inc, as ptxas would turn atom.add into one addition for all active lanes
  /// and wait for its result at once.
  __device__ std::uint32_t atomic_count_release(std::uint32_t* where) const {
    std::uint32_t before;
    asm volatile("atom.inc.release.gpu.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(where), "r"(0x7fffffffu)
                 : "memory");
    return before;
  }
  /// Adds `value`, as a release like the above, and acquires: what others did before they added
  /// happens before what follows here. A fence() after the addition takes longer than the addition.
  __device__ std::uint32_t atomic_add_acquire_release(std::uint32_t* where,
                                                      std::uint32_t value) const {
    std::uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(where), "r"(value)
                 : "memory");
    return before;
  }
  __device__ std::uint32_t atomic_compare_and_swap(std::uint32_t* where, std::uint32_t expected,
                                                   std::uint32_t value) const {
    return atomicCAS(where, expected, value);
  }

  /// Loads what another block wrote before its fence(), from L2: L1 may hold an old value.
  __device__ float load_fresh(const float* from) const { return __ldcg(from); }
  /// The same for 16 bytes.
  template <class T>
  __device__ T load_fresh(const T* from) const {
    static_assert(sizeof(T) == 16);
    return bit_cast<T>(__ldcg(reinterpret_cast<const uint4*>(from)));
  }

  /// Loads what another block may be writing: each 4-byte word is the old or the new one.
  template <class T>
  __device__ T load_racing(const T* from) const {
    static_assert(sizeof(T) % 4 == 0);
    struct Words {
      std::uint32_t word[sizeof(T) / 4];
    } words;
    for (std::size_t i = 0; i < sizeof(T) / 4; ++i)
      words.word[i] = reinterpret_cast<const volatile std::uint32_t*>(from)[i];
    return bit_cast<T>(words);
  }

  /// Prefetches a line of 128 bytes into L2: a hint.
  __device__ void prefetch(const std::byte* from) const {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
  }

  /// c = A B, A 16 x 16 and B 16 x 8 of fp16, in the fragments of mma.m16n8k16.
  __device__ void first_mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                            std::uint32_t b1) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%10,%10,%10,%10};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
  }
  /// c += A B.
  __device__ void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                      std::uint32_t b1) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  /// Call it, then sync(), before asynchronous copies overwrite shared memory that threads have
  /// read or written (a proxy fence).
  __device__ void hand_over_shared() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  }

  // A ring of stages (buffers) in shared memory, filled by asynchronous copies. All lanes of a warp
  // call these, except prepare_stage().

  /// Initializes a stage's barrier: once, by one thread, before the first copy; then sync().
  __device__ void prepare_stage(std::uint64_t* barrier) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(barrier)));
    asm volatile("fence.mbarrier_init.release.cluster;");
#endif
  }
  /// Begins a stage: `bytes` is the total of the copies that follow, up to end_stage().
  __device__ void begin_stage(std::uint64_t* barrier, std::uint32_t bytes) const {
#if __CUDA_ARCH__ >= 900
    if (is_elected())
      asm volatile(
          "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
          "r"(bytes)
          : "memory");
#endif
  }
  /// Starts a copy to shared memory. `bytes` and both addresses are multiples of 16. `Once`: the
  /// data is read once, L2 evicts it first.
  template <bool Once = true>
  __device__ void copy_to_stage(std::byte* to, const std::byte* from, std::uint32_t bytes,
                                std::uint64_t* barrier) const {
#if __CUDA_ARCH__ >= 900
    constexpr std::uint64_t eviction = Once ? 0x12f0000000000000u : 0x1000000000000000u;
    if (is_elected())
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
          "[%1], %2, [%3], %4;" ::"r"(shared_address(to)),
          "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(eviction)
          : "memory");
#else
    for (std::uint32_t at = static_cast<std::uint32_t>(lane()) * 16; at < bytes; at += 512)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to + at)),
                   "l"(from + at)
                   : "memory");
#endif
  }
  /// Ends a stage, an empty one too: before 9.0, wait_stage() counts stages.
  __device__ void end_stage() const {
#if __CUDA_ARCH__ < 900
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }
  /// Waits until the stage's copies have arrived. `parity` flips each time the stage is reused;
  /// `Newer` stages have been begun after it.
  template <int Newer>
  __device__ void wait_stage(std::uint64_t* barrier, std::uint32_t parity) const {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\nagain_%=:\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again_%=;\n}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(Newer) : "memory");
    __syncwarp();
#endif
  }

  /// Transposes an 8 x 8 matrix of 16-bit elements; a lane holds two neighbours of row lane / 4.
  __device__ std::uint32_t transpose(std::uint32_t value) const {
    std::uint32_t result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
    return result;
  }

 private:
  DeviceThreads() = default;

#if __CUDA_ARCH__ >= 900
  /// True in one lane of the warp. elect.sync tells ptxas that it is a single lane: otherwise it
  /// would loop over lanes for the addresses of bulk copies.
  __device__ static bool is_elected() {
    std::uint32_t elected;
    asm volatile("{\n.reg .pred one;\nelect.sync _|one, 0xffffffff;\nselp.u32 %0, 1, 0, one;\n}"
                 : "=r"(elected));
    return elected != 0;
  }
#endif

  __device__ static std::uint32_t shared_address(const void* pointer) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
  }
};

}  // namespace kvtilt::cuda
