// SPDX-License-Identifier: MIT
// One attention kernel of each kind: 16 bits, codes that fill their words (8, 4), that share words
// (2) or have two planes (3), keys per token, values per channel, several recipes, any recipe, latents.
#include <kvtilt/cuda/attention/attend.cuh>

namespace kvtilt::cuda {

template __global__ void attend_kernel<HalfTraits<128>>(const __grid_constant__ AttendArguments);
template __global__ void attend_kernel<PageTraits<8, 4, 128>>(
    const __grid_constant__ AttendArguments);
template __global__ void attend_kernel<PageTraits<4, 2, 128>>(
    const __grid_constant__ AttendArguments);
template __global__ void attend_kernel<PageTraits<3, 2, 128>>(
    const __grid_constant__ AttendArguments);
template __global__ void attend_kernel<TokenKeyTraits<8, 8, 128>>(
    const __grid_constant__ AttendArguments);
template __global__ void attend_kernel<ChannelValueTraits<4, 2, 128>>(
    const __grid_constant__ AttendArguments);
template __global__ void attend_kernel<
    MixedTraits<PageTraits<4, 2, 128>, PageTraits<4, 4, 128>, PageTraits<3, 2, 128>>>(
    const __grid_constant__ AttendArguments);
template __global__ void attend_kernel<GenericTraits<128>>(const __grid_constant__ AttendArguments);
template __global__ void attend_kernel<LatentTraits<576, 512>>(
    const __grid_constant__ AttendArguments);

}  // namespace kvtilt::cuda
