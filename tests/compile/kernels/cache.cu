// SPDX-License-Identifier: MIT
// The kernels that put tokens into a device cache, and the one that takes them out.
#include <kvtilt/cuda/cache/append.cuh>
#include <kvtilt/cuda/cache/unpack.cuh>

cudaError_t append_and_unpack(const kvtilt::cuda::AppendArguments& append,
                              const kvtilt::cuda::UnpackArguments& unpack) {
  (void)kvtilt::cuda::launch_append(append, nullptr);
  (void)kvtilt::cuda::launch_pack(append, 1, nullptr);
  return kvtilt::cuda::launch_unpack(unpack, nullptr);
}
