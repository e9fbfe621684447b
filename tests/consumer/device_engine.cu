// SPDX-License-Identifier: MIT
/// A program with a kernel of its own: an engine's .cu file sees the whole library.
#include <kvtilt/kvtilt.cuh>

#include <cstdint>
#include <cstdio>

namespace {

template <class Threads>
__device__ void sum_of_lanes(const Threads& threads, std::uint32_t* sum) {
  std::uint32_t value = static_cast<std::uint32_t>(threads.lane());
  for (int mask = 16; mask > 0; mask /= 2) value += threads.shuffle_xor(value, mask);
  if (threads.thread() == 0) *sum = value;
}

__global__ void sum_kernel(std::uint32_t* sum) {
  sum_of_lanes(kvtilt::cuda::DeviceThreads(), sum);
}

}  // namespace

int main() {
  const kvtilt::Result<kvtilt::Recipe> recipe = kvtilt::parse_recipe("k4v2");
  if (!recipe || recipe->key.bits != 4) return 1;

  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no CUDA device: the kernel was compiled and not run");
    return 77;
  }
  std::uint32_t* sum = nullptr;
  std::uint32_t found = 0;
  if (cudaMalloc(&sum, sizeof *sum) != cudaSuccess) return 1;
  sum_kernel<<<1, 32>>>(sum);
  const cudaError_t error = cudaMemcpy(&found, sum, sizeof found, cudaMemcpyDeviceToHost);
  cudaFree(sum);
  std::printf("%s, sum of lanes %u\n", cudaGetErrorString(error), found);
  return error == cudaSuccess && found == 31 * 32 / 2 ? 0 : 1;
}
