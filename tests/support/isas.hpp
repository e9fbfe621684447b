// SPDX-License-Identifier: MIT
/// The instruction sets that this build contains and this machine supports.
#pragma once

#include <kvtilt/cpu/isa.hpp>

#include <vector>

namespace kvtilt::test {

inline std::vector<Isa> usable_isas() {
  std::vector<Isa> list;
  for (const Isa isa : all_isas)
    if (check_isa(isa).ok()) list.push_back(isa);
  return list;
}

}  // namespace kvtilt::test
