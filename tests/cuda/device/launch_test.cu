// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/launch.cuh>
#include <kvtilt/cuda/threads.cuh>

#include "device_array.cuh"
#include "graph.cuh"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace kvtilt::test {
namespace {

using cuda::detail::launch;
using cuda::detail::supports_pdl;

TEST(Launch, UsesPdlOnlyWhereKernelsWaitByThemselves) {
  EXPECT_TRUE(supports_pdl(90, 12030));
  EXPECT_TRUE(supports_pdl(120, 13000));
  EXPECT_FALSE(supports_pdl(80, 13000));  // a device of 9.0 that runs code for an older one
  EXPECT_FALSE(supports_pdl(89, 13000));
  EXPECT_FALSE(supports_pdl(90, 12020));  // this driver cannot capture such launches
}

template <class Threads>
__global__ void count_slowly(std::uint32_t* count, long long cycles) {
  (void)Threads::after_previous_kernel();
  const std::uint32_t before = *count;
  for (const long long start = clock64(); clock64() - start < cycles;) {
  }
  *count = before + 1;
}
template <class Threads>
__global__ void note_count(const std::uint32_t* count, std::uint32_t* notes) {
  const Threads threads = Threads::after_previous_kernel();
  notes[threads.block()] = *count;
}

// Each kernel starts while its predecessor still runs: without the wait in after_previous_kernel() it would read
// the old values.
TEST(LaunchDevice, KernelsSeeWhatThoseInFrontWrote) {
  KVTILT_SKIP_WITHOUT_GPU();
  constexpr int turns = 200;
  constexpr int blocks = 64;
  const DeviceArray<std::uint32_t> count(std::vector<std::uint32_t>{0});
  const DeviceArray<std::uint32_t> notes(turns * blocks);
  cudaStream_t stream = nullptr;
  expect_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto queue = [&] {
    for (int turn = 0; turn < turns; ++turn) {
      expect_cuda(
          launch<&count_slowly<cuda::DeviceThreads>>(1, 1, 0, stream, count.data(), 20000LL));
      expect_cuda(launch<&note_count<cuda::DeviceThreads>>(blocks, 32, 0, stream, count.data(),
                                                           notes.data() + turn * blocks));
    }
  };
  const auto expect_notes = [&](std::uint32_t before) {
    expect_cuda(cudaStreamSynchronize(stream));
    const std::vector<std::uint32_t> noted = notes.get();
    for (std::uint32_t i = 0; i < turns * blocks; ++i)
      ASSERT_EQ(noted[i], before + i / blocks + 1) << i;
  };
  queue();
  expect_notes(0);

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  expect_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  queue();
  expect_cuda(cudaStreamEndCapture(stream, &graph));
  expect_cuda(cudaGraphInstantiate(&replay, graph, 0));
  expect_cuda(cudaGraphLaunch(replay, stream));
  expect_notes(turns);
  expect_cuda(cudaGraphExecDestroy(replay));
  expect_cuda(cudaGraphDestroy(graph));
  expect_cuda(cudaStreamDestroy(stream));
}

// The predecessor of a kernel may be a memset, or a kernel of another stream.
TEST(LaunchDevice, KernelsSeeWhatMemsetsAndOtherStreamsWrote) {
  KVTILT_SKIP_WITHOUT_GPU();
  constexpr int turns = 50;
  constexpr int blocks = 64;
  const DeviceArray<std::uint32_t> count(std::vector<std::uint32_t>{0});
  DeviceArray<std::uint32_t> notes(turns * blocks);
  cudaStream_t other = nullptr;
  cudaEvent_t here = nullptr;
  cudaEvent_t there = nullptr;
  expect_cuda(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  expect_cuda(cudaEventCreateWithFlags(&here, cudaEventDisableTiming));
  expect_cuda(cudaEventCreateWithFlags(&there, cudaEventDisableTiming));
  const auto count_on = [&](cudaStream_t stream) {
    expect_cuda(launch<&count_slowly<cuda::DeviceThreads>>(1, 1, 0, stream, count.data(), 20000LL));
  };
  const auto queue = [&](cudaStream_t stream) {
    for (int turn = 0; turn < turns; ++turn) {
      expect_cuda(cudaMemsetAsync(count.data(), turn, sizeof(std::uint32_t), stream));
      count_on(stream);
      expect_cuda(cudaEventRecord(here, stream));
      expect_cuda(cudaStreamWaitEvent(other, here, 0));
      count_on(other);
      expect_cuda(cudaEventRecord(there, other));
      expect_cuda(cudaStreamWaitEvent(stream, there, 0));
      expect_cuda(launch<&note_count<cuda::DeviceThreads>>(blocks, 32, 0, stream, count.data(),
                                                           notes.data() + turn * blocks));
    }
  };
  const auto expect_notes = [&] {
    expect_cuda(cudaDeviceSynchronize());
    const std::vector<std::uint32_t> noted = notes.get();
    for (std::uint32_t i = 0; i < turns * blocks; ++i)
      ASSERT_EQ(noted[i], i / blocks * 0x01010101u + 2) << i;
  };
  const Graph graph(queue);
  graph.replay();
  expect_notes();
  notes.set(std::vector<std::uint32_t>(turns * blocks));
  queue(graph.stream);
  expect_notes();
  expect_cuda(cudaEventDestroy(here));
  expect_cuda(cudaEventDestroy(there));
  expect_cuda(cudaStreamDestroy(other));
}

}  // namespace
}  // namespace kvtilt::test
