// SPDX-License-Identifier: MIT
/// What a kernel body may ask of the block it runs in. Bodies are templates over this class: on the
/// GPU it is empty and each member an instruction, in the tests it is an emulator with the same
/// members (tests/support/emulated_threads.hpp). So all bodies run, and are debugged, on the host.
#pragma once

#include <kvtilt/core/config.hpp>
#include <kvtilt/core/half.hpp>
#include <kvtilt/cuda/machine.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace kvtilt::cuda {

class DeviceThreads {
 public:
  /// In turn: the kernel behind this one may be started from now on, and wait like this one, which
  /// does until those in front have ended. What they wrote is there then. No kernel does anything
  /// without: launch() starts them all early.
  __device__ static DeviceThreads in_turn() {
#if __CUDA_ARCH__ >= 900 && KVTILT_CUDA_EARLY_START
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
  /// Writes before it are seen by every block that reads, behind its own fence, what was written
  /// after it.
  __device__ void fence() const { __threadfence(); }

  // All 32 lanes of a warp take part in these.
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

  /// Each returns what was there before.
  __device__ std::uint32_t atomic_add(std::uint32_t* where, std::uint32_t value) const {
    return atomicAdd(where, value);
  }
  __device__ std::uint64_t atomic_add(std::uint64_t* where, std::uint64_t value) const {
    static_assert(sizeof(unsigned long long) == sizeof(std::uint64_t));
    return atomicAdd(reinterpret_cast<unsigned long long*>(where), value);
  }
  /// Adds 1 to less than 2^31 - 1. What the block read or wrote before it happens before what another
  /// does that finds the sum, behind its own fence(). Without the half of a fence() that forgets what L1
  /// holds. Not an addition: of that ptxas makes one of all lanes that may take part, which waits for
  /// the answer at once.
  __device__ std::uint32_t atomic_count_release(std::uint32_t* where) const {
    std::uint32_t before;
    asm volatile("atom.inc.release.gpu.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(where), "r"(0x7fffffffu)
                 : "memory");
    return before;
  }
  /// The same, and what others did before they added happens before what comes next here: a fence()
  /// behind the addition takes longer than the addition.
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

  /// What another block wrote before its fence().
  __device__ float load_fresh(const float* from) const { return __ldcg(from); }
  /// The same for 16 bytes.
  template <class T>
  __device__ T load_fresh(const T* from) const {
    static_assert(sizeof(T) == 16);
    return bit_cast<T>(__ldcg(reinterpret_cast<const uint4*>(from)));
  }

  /// Brings a line of 128 bytes closer; nothing depends on it.
  __device__ void prefetch(const std::byte* from) const {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
  }

  /// c = A B, A 16 x 16 and B 16 x 8 of fp16, by the fragments of mma.m16n8k16.
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
  /// Before asynchronous copies write where threads have read or written: followed by sync().
  __device__ void hand_over_shared() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  }

  // A ring of stages in shared memory, filled by asynchronous copies. The whole warp calls these, but
  // for the first.

  /// Once per stage, by one thread, before the first copy; followed by sync().
  __device__ void prepare_stage(std::uint64_t* barrier) const {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(barrier)));
    asm volatile("fence.mbarrier_init.release.cluster;");
#endif
  }
  /// Announces the bytes of the copies that follow, up to end_stage().
  __device__ void begin_stage(std::uint64_t* barrier, std::uint32_t bytes) const {
#if __CUDA_ARCH__ >= 900
    if (is_elected())
      asm volatile(
          "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
          "r"(bytes)
          : "memory");
#endif
  }
  /// `bytes` and both addresses are multiples of 16. `Once`: L2 need not keep what is read.
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
  /// Also where a stage stays empty: older architectures count stages.
  __device__ void end_stage() const {
#if __CUDA_ARCH__ < 900
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }
  /// Until the stage's copies have arrived. `parity` flips each time a stage is used again; `Newer`
  /// stages were begun after it.
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

  /// Transposes the 8 x 8 matrix whose row lane / 4 holds two halves of each lane.
  __device__ std::uint32_t transpose(std::uint32_t value) const {
    std::uint32_t result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
    return result;
  }

 private:
  DeviceThreads() = default;

#if __CUDA_ARCH__ >= 900
  /// One lane of the warp: where ptxas knows that it is one, bulk copies take their addresses from it
  /// without a loop over lanes.
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
