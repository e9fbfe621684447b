// SPDX-License-Identifier: MIT
/// All kernel tables that can be tested on this machine.
#pragma once

#include <kvtilt/cpu/kernels.hpp>

#include "support/all_formats.hpp"
#include "support/isas.hpp"

#include <ostream>
#include <string>
#include <vector>

namespace kvtilt::test {

struct KernelTable {
  std::string name;
  const cpu::Kernels* kernels;
  friend std::ostream& operator<<(std::ostream& out, const KernelTable& table) {
    return out << table.name;
  }
};

/// The tables of the usable instruction sets and, if AVX-VNNI is not among them, its AVX-512
/// stand-in.
inline std::vector<KernelTable> kernel_tables() {
  std::vector<KernelTable> tables;
  for (const Isa isa : usable_isas())
    tables.push_back({to_string(isa), cpu::kernels<AllFormats>(isa)});
  if (!check_isa(Isa::AvxVnni).ok() && avx_vnni_by_avx512() != nullptr)
    tables.push_back({"avx_vnni_by_avx512", avx_vnni_by_avx512()});
  return tables;
}

}  // namespace kvtilt::test
