// SPDX-License-Identifier: MIT
// Prefill kernels, and kernels that run one of their parts once and twice: the difference is what
// 32 tokens cost a warp of 32 query rows, or what a warp pays to stage a tile of 16 tokens.
#include <kvtilt/cuda/attention/attend_prefill.cuh>

#include <cstddef>

namespace kvtilt::cuda {

template __global__ void attend_prefill_kernel<HalfTraits<128>>(
    const __grid_constant__ PrefillArguments);
template __global__ void attend_prefill_kernel<PageTraits<4, 2, 128>>(
    const __grid_constant__ PrefillArguments);
template __global__ void attend_prefill_kernel<PageTraits<3, 2, 128>>(
    const __grid_constant__ PrefillArguments);
template __global__ void attend_prefill_kernel<TokenKeyTraits<8, 8, 128>>(
    const __grid_constant__ PrefillArguments);
template __global__ void attend_prefill_kernel<ChannelValueTraits<4, 2, 128>>(
    const __grid_constant__ PrefillArguments);
template __global__ void attend_prefill_kernel<
    MixedTraits<PageTraits<8, 4, 128>, PageTraits<4, 2, 128>, PageTraits<3, 2, 128>>>(
    const __grid_constant__ PrefillArguments);
template __global__ void attend_prefill_kernel<GenericTraits<128>>(
    const __grid_constant__ PrefillArguments);
template __global__ void attend_prefill_kernel<PageTraits<4, 2, 256>>(
    const __grid_constant__ PrefillArguments);

/// memory  [lane][...]: the lane's state, loaded first and stored last
template <int Parts>
__global__ void attend_parts(float* memory, const QueryRow* rows) {
  using Traits = PrefillTraits<GenericTraits<128>>;
  using State = PrefillState<Traits>;
  constexpr int sums = State::M * 2 * Traits::channel_tiles * 4;
  DeviceThreads threads = DeviceThreads::after_previous_kernel();
  State state;
  float* own = memory + threads.lane() * (sums + State::M * 4);
  const auto each = [&](auto&& move) {
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < sums; ++i)
      move(own[i], state.output[i / (8 * Traits::channel_tiles)]
                               [i / 4 % (2 * Traits::channel_tiles)][i % 4]);
    KVTILT_DEVICE_UNROLL
    for (int i = 0; i < State::M * 2; ++i) {
      move(own[sums + i], state.sum[i / 2][i % 2]);
      move(own[sums + State::M * 2 + i], state.maximum[i / 2][i % 2]);
    }
  };
  each([](float& there, float& here) { here = there; });
  const std::byte* queries = threads.shared();
  const std::byte* keys = queries + Traits::row_tiles * Traits::key_bytes;
  const std::byte* values = keys + unit_tiles * Traits::key_bytes;
  KVTILT_DEVICE_UNROLL
  for (int part = 0; part < Parts; ++part) {
    TileLogits<Traits> logits;
    state.score(threads, queries, keys + part * Traits::score_tiles * Traits::key_bytes, logits);
    const typename State::Factors factors(rows, threads.lane());
    state.raise(threads, logits, factors);
    state.mix(threads, values + part * Traits::score_tiles * Traits::value_bytes, logits, factors);
  }
  each([](float& there, float& here) { there = here; });
}
template __global__ void attend_parts<1>(float*, const QueryRow*);
template __global__ void attend_parts<2>(float*, const QueryRow*);

template <class Pages, int Tiles>
__device__ void stage_tiles(const LayerView& layer, TokenTile tile) {
  using Traits = PrefillTraits<Pages>;
  DeviceThreads threads = DeviceThreads::after_previous_kernel();
  tile.tokens = tile_extent;  // partial tiles are rare and cost more
  KVTILT_DEVICE_UNROLL
  for (int i = 0; i < Tiles; ++i) {
    std::byte* keys = threads.shared() + i * (Traits::key_bytes + Traits::value_bytes);
    stage_sealed_tile<Traits>(threads, layer, 0, tile, keys, keys + Traits::key_bytes);
    tile.index += 1;
  }
}

}  // namespace kvtilt::cuda

#define KVTILT_STAGE_TILES(name, ...)                                                            \
  extern "C" __global__ void name##_once(const __grid_constant__ kvtilt::cuda::LayerView layer,  \
                                         kvtilt::cuda::TokenTile tile) {                         \
    kvtilt::cuda::stage_tiles<kvtilt::cuda::__VA_ARGS__, 1>(layer, tile);                        \
  }                                                                                              \
  extern "C" __global__ void name##_twice(const __grid_constant__ kvtilt::cuda::LayerView layer, \
                                          kvtilt::cuda::TokenTile tile) {                        \
    kvtilt::cuda::stage_tiles<kvtilt::cuda::__VA_ARGS__, 2>(layer, tile);                        \
  }

KVTILT_STAGE_TILES(k4v2, PageTraits<4, 2, 128>)
KVTILT_STAGE_TILES(k3v2, PageTraits<3, 2, 128>)
KVTILT_STAGE_TILES(k8tv8, TokenKeyTraits<8, 8, 128>)
KVTILT_STAGE_TILES(k4v2c, ChannelValueTraits<4, 2, 128>)
