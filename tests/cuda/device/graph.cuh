// SPDX-License-Identifier: MIT
/// A captured CUDA graph.
#pragma once

#include "device_array.cuh"

#include <cuda_runtime.h>

namespace kvtilt::test {

/// Captures what `calls` queues on a stream.
struct Graph {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;

  template <class Calls>
  explicit Graph(Calls&& calls) {
    expect_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    expect_cuda(cudaDeviceSynchronize());
    expect_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    calls(stream);
    expect_cuda(cudaStreamEndCapture(stream, &graph));
    expect_cuda(cudaGraphInstantiate(&exec, graph, 0));
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    expect_cuda(cudaGraphExecDestroy(exec));
    expect_cuda(cudaGraphDestroy(graph));
    expect_cuda(cudaStreamDestroy(stream));
  }
  void replay() const {
    expect_cuda(cudaDeviceSynchronize());
    expect_cuda(cudaGraphLaunch(exec, stream));
    expect_cuda(cudaStreamSynchronize(stream));
  }
};

}  // namespace kvtilt::test
