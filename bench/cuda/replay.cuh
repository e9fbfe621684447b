// SPDX-License-Identifier: MIT
#pragma once

#include "probe_support.cuh"

#include <algorithm>
#include <vector>

namespace kvtilt::bench {

/// Seconds of one launch: a graph of `launches`, replayed until the median stands.
template <class Launch>
double replayed_seconds(int launches, Launch launch) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  KVTILT_CHECK(cudaStreamCreate(&stream));
  KVTILT_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < launches; ++i) launch(i, stream);
  KVTILT_CHECK(cudaStreamEndCapture(stream, &graph));
  KVTILT_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  KVTILT_CHECK(cudaGraphLaunch(replay, stream));
  KVTILT_CHECK(cudaStreamSynchronize(stream));
  cudaEvent_t start, stop;
  KVTILT_CHECK(cudaEventCreate(&start));
  KVTILT_CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  double spent = 0;
  while (times.size() < 7 || (spent < 60 && times.size() < 50)) {
    float milliseconds = 0;
    KVTILT_CHECK(cudaEventRecord(start, stream));
    KVTILT_CHECK(cudaGraphLaunch(replay, stream));
    KVTILT_CHECK(cudaEventRecord(stop, stream));
    KVTILT_CHECK(cudaEventSynchronize(stop));
    KVTILT_CHECK(cudaEventElapsedTime(&milliseconds, start, stop));
    times.push_back(milliseconds);
    spent += milliseconds;
  }
  KVTILT_CHECK(cudaEventDestroy(start));
  KVTILT_CHECK(cudaEventDestroy(stop));
  KVTILT_CHECK(cudaGraphExecDestroy(replay));
  KVTILT_CHECK(cudaGraphDestroy(graph));
  KVTILT_CHECK(cudaStreamDestroy(stream));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e-3 / launches;
}

}  // namespace kvtilt::bench
