// SPDX-License-Identifier: MIT
/// Bring your own threads.
#pragma once

namespace kvtilt {

/// `run` calls task(argument, w) once for every w from 0 to workers - 1, on any threads and in any
/// order, and returns when all are done. The default runs everything on the calling thread.
/// Results do not depend on the number of workers, to the bit.
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
