// SPDX-License-Identifier: MIT
// Kernels whose instructions are known: they test that check_cubin reads the encodings of the
// compiler in use. Not part of the library.
#include <cstdint>

#define KERNEL extern "C" __global__ void

KERNEL load_byte(const char* from, char* to) { to[threadIdx.x] = from[threadIdx.x]; }
KERNEL load_short(const short* from, short* to) { to[threadIdx.x] = from[threadIdx.x]; }
KERNEL load4(const int* from, int* to) { to[threadIdx.x] = from[threadIdx.x]; }
KERNEL load8(const int2* from, int2* to) { to[threadIdx.x] = from[threadIdx.x]; }
KERNEL load16(const int4* from, int4* to) { to[threadIdx.x] = from[threadIdx.x]; }

KERNEL shared16(const int4* from, int* to) {
  __shared__ int4 cells[32];
  cells[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
  to[threadIdx.x] = cells[31 - threadIdx.x].y;
}

// Indices known only at run time keep the array in local memory.
KERNEL local4(const int* from, int* to) {
  int cells[32];
  for (int i = 0; i < 32; ++i) cells[from[i] & 31] = i;
  to[threadIdx.x] = cells[from[threadIdx.x] & 31];
}

KERNEL generic4(int* memory, int* to, int choose) {
  __shared__ int cells[32];
  volatile int* const where = choose != 0 ? memory : cells;
  where[0] = 1;
  to[0] = where[threadIdx.x];
}

KERNEL shuffles(int* cells) {
  int value = cells[threadIdx.x];
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  value += __shfl_sync(0xffffffffu, value, value & 31);
  cells[threadIdx.x] = value;
}

KERNEL tensor(std::uint32_t* cells, float* to) {
  float c[4] = {};
  const std::uint32_t a = cells[threadIdx.x];
  std::uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(a));
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a), "r"(transposed));
  to[threadIdx.x] = c[0] + c[1] + c[2] + c[3];
}

KERNEL asynchronous(const int4* from, int* to) {
  __shared__ int4 cells[32];
  const unsigned cell = static_cast<unsigned>(__cvta_generic_to_shared(cells + threadIdx.x));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(cell), "l"(from + threadIdx.x));
  asm volatile("cp.async.wait_all;" ::: "memory");
  to[threadIdx.x] = cells[threadIdx.x].w;
}

KERNEL turns(int* cells) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  cells[threadIdx.x] = 1;
}

KERNEL jumps_the_queue(int* cells) {
  volatile int* const where = cells;
  const int early = where[threadIdx.x];
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  where[threadIdx.x] = early + 1;
}
