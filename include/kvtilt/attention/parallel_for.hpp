// SPDX-License-Identifier: MIT
/// Lets attention run on the caller's threads.
#pragma once

namespace kvtilt {

/// A caller's thread pool. `run` must call task(argument, w) once for every w from 0 to workers - 1,
/// on any threads and in any order, and return when all are done. If `run` is null, everything runs on
/// the calling thread. Results are the same bits for any number of workers.
struct ParallelFor {
  using Task = void (*)(void* argument, int worker);

  int workers = 1;
  void (*run)(void* context, int workers, Task task, void* argument) = nullptr;
  void* context = nullptr;

  void operator()(Task task, void* argument) const {
    if (run != nullptr)
      run(context, workers, task, argument);
    else
      for (int worker = 0; worker < workers; ++worker) task(argument, worker);
  }
};

}  // namespace kvtilt
