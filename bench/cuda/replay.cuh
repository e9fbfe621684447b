// SPDX-License-Identifier: MIT
/// Timing by replays of a CUDA graph.
#pragma once

#include "probe_support.cuh"

#include <algorithm>
#include <vector>

namespace kvtilt::bench {

/// A graph of what record(stream) queues. If construction throws, its CUDA objects leak.
class Graph {
 public:
  template <class Record>
  explicit Graph(Record record) {
    cudaGraph_t graph = nullptr;
    KVTILT_CHECK(cudaEventCreate(&start_));
    KVTILT_CHECK(cudaEventCreate(&stop_));
    KVTILT_CHECK(cudaStreamCreate(&stream_));
    KVTILT_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    try {
      record(stream_);
    } catch (...) {
      // End the capture: while it lasts, the next row could not allocate.
      (void)cudaStreamEndCapture(stream_, &graph);
      throw;
    }
    KVTILT_CHECK(cudaStreamEndCapture(stream_, &graph));
    KVTILT_CHECK(cudaGraphInstantiate(&replay_, graph, 0));
    KVTILT_CHECK(cudaGraphDestroy(graph));
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    (void)cudaGraphExecDestroy(replay_);
    (void)cudaStreamDestroy(stream_);
    (void)cudaEventDestroy(start_);
    (void)cudaEventDestroy(stop_);
  }

  /// Device time from before the first replay to after the last one. Waits.
  double seconds(int replays = 1) {
    float milliseconds = 0;
    keep_busy(stream_);
    KVTILT_CHECK(cudaEventRecord(start_, stream_));
    for (int i = 0; i < replays; ++i) KVTILT_CHECK(cudaGraphLaunch(replay_, stream_));
    KVTILT_CHECK(cudaEventRecord(stop_, stream_));
    KVTILT_CHECK(cudaEventSynchronize(stop_));
    KVTILT_CHECK(cudaEventElapsedTime(&milliseconds, start_, stop_));
    return milliseconds * 1e-3;
  }

  [[nodiscard]] cudaStream_t stream() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t replay_ = nullptr;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t stop_ = nullptr;
};

/// Seconds per launch: the median over replays of a graph of `launches` launches.
template <class Launch>
double replayed_seconds(int launches, Launch launch) {
  Graph graph([&](cudaStream_t stream) {
    for (int i = 0; i < launches; ++i) launch(i, stream);
  });
  graph.seconds();
  std::vector<double> times;
  double spent = 0;
  while (times.size() < 7 || (spent < 0.06 && times.size() < 50)) {
    times.push_back(graph.seconds());
    spent += times.back();
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] / launches;
}

}  // namespace kvtilt::bench
