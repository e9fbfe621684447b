// SPDX-License-Identifier: MIT
// The small kernels: sequence calls, page tables and the merge of outputs.
#include <kvtilt/cuda/attention/merge_outputs.cuh>
#include <kvtilt/cuda/cache/page_tables.cuh>
#include <kvtilt/cuda/cache/sequence_kernels.cuh>

namespace kvtilt::cuda {

bool launch_each(Layers layers, const Truncation& truncation, const ForkRequest& fork,
                 const DroppedPages& dropped) {
  return launch_give_pages(layers, 0, {}, nullptr).ok() &&
         launch_drop_shared(layers, dropped, nullptr).ok() &&
         launch_reset(layers, 0, nullptr).ok() &&
         launch_truncate(layers, truncation, nullptr).ok() &&
         launch_remove(layers, 0, 0, 0, nullptr).ok() &&
         launch_fork(layers, fork, 1, nullptr).ok() && launch_write_slots({}, {}, nullptr).ok() &&
         export_tables({}, {}, {}).ok() && import_tables({}, {}, nullptr, 0, 0, {}).ok() &&
         merge({}, nullptr, {}, nullptr, nullptr).ok();
}

}  // namespace kvtilt::cuda
