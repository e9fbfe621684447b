// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/machine.hpp>

#include <gtest/gtest.h>

namespace kvtilt::cuda {
namespace {

TEST(Machine, EveryArchitectureHasNumbersThatKernelsCanWorkWith) {
  for (const int architecture : {80, 86, 89, 90, 100, 120}) {
    const MachineTraits traits = machine_traits(architecture);
    EXPECT_GE(traits.attend_stages, 2) << "a ring holds the unit in use and one on its way";
    EXPECT_LE(traits.attend_stages, traits.most_stages);
    EXPECT_EQ(traits.most_stages, architecture < 90 ? 2 : 4);
    EXPECT_EQ(traits.prefill_copies, architecture >= 90);
    for (const int blocks : {traits.append_blocks, traits.pack_blocks, traits.attend_blocks,
                             traits.prefill_blocks, traits.unpack_blocks}) {
      EXPECT_GE(blocks, 1);
      EXPECT_LE(128 * blocks, 1536) << "threads of a multiprocessor";
    }
  }
}

}  // namespace
}  // namespace kvtilt::cuda
