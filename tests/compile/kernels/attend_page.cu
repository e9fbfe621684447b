// SPDX-License-Identifier: MIT
// Kernels that attend to one page and to two: the difference is the cost of a page alone, without
// loading the query and without the start and the end of the state.
#include <kvtilt/cuda/attention/page.hpp>
#include <kvtilt/cuda/threads.cuh>

#include <cstddef>

namespace kvtilt::cuda {

/// pages  in global memory, one after the other
/// query  [lane][step]: two registers of halves each
/// out    [lane][...]: the lane's final state
template <class Traits, int Pages>
__device__ void attend_pages(std::byte* pages, const uint2* query, float* out, float factor) {
  DeviceThreads threads = DeviceThreads::after_previous_kernel();
  QueryTile<Traits::key_dim> tile;
  constexpr int steps = QueryTile<Traits::key_dim>::steps;
  KVTILT_DEVICE_UNROLL
  for (int step = 0; step < steps; ++step) {
    const uint2 halves = query[threads.lane() * steps + step];
    tile.half[step][0] = halves.x;
    tile.half[step][1] = halves.y;
  }
  tile.factor[0] = tile.factor[1] = factor;
  typename Traits::State state;
  state.clear();
  state.code_units = true;
  const AttendArguments unused_arguments{};
  const ItemRows unused_item{};
  KVTILT_DEVICE_UNROLL
  for (int page = 0; page < Pages; ++page)
    attend_page<Traits>(threads, unused_arguments, unused_item, pages + page * Traits::bytes, 0,
                        Traits::page_tokens, false, tile, state);
  state.finish(threads);
  constexpr int tiles = Traits::State::tiles;
  float* own = out + threads.lane() * (tiles * 4 + 4);
  KVTILT_DEVICE_UNROLL
  for (int i = 0; i < tiles * 4; ++i) own[i] = state.output[i / 4][i % 4];
  KVTILT_DEVICE_UNROLL
  for (int column = 0; column < 2; ++column) {
    own[tiles * 4 + column] = state.sum[column];
    own[tiles * 4 + 2 + column] = state.maximum[column];
  }
}

}  // namespace kvtilt::cuda

#define KVTILT_ATTEND_PAGES(name, ...)                                                      \
  extern "C" __global__ void name##_once(std::byte* pages, const uint2* query, float* out,  \
                                         float factor) {                                    \
    kvtilt::cuda::attend_pages<kvtilt::cuda::__VA_ARGS__, 1>(pages, query, out, factor);    \
  }                                                                                         \
  extern "C" __global__ void name##_twice(std::byte* pages, const uint2* query, float* out, \
                                          float factor) {                                   \
    kvtilt::cuda::attend_pages<kvtilt::cuda::__VA_ARGS__, 2>(pages, query, out, factor);    \
  }

KVTILT_ATTEND_PAGES(k4v2, PageTraits<4, 2, 128>)
KVTILT_ATTEND_PAGES(k4v4, PageTraits<4, 4, 128>)
KVTILT_ATTEND_PAGES(k2v2, PageTraits<2, 2, 128>)
KVTILT_ATTEND_PAGES(k8v8, PageTraits<8, 8, 128>)
KVTILT_ATTEND_PAGES(k3v2, PageTraits<3, 2, 128>)
KVTILT_ATTEND_PAGES(k6v5, PageTraits<6, 5, 128>)
KVTILT_ATTEND_PAGES(k4tv4, TokenKeyTraits<4, 4, 128>)
KVTILT_ATTEND_PAGES(k8tv8, TokenKeyTraits<8, 8, 128>)
KVTILT_ATTEND_PAGES(k8tv8_g32, TokenKeyTraits<8, 8, 128, 128, 64, 32, 32>)
KVTILT_ATTEND_PAGES(k4v2c, ChannelValueTraits<4, 2, 128>)
KVTILT_ATTEND_PAGES(k4v4c, ChannelValueTraits<4, 4, 128>)
