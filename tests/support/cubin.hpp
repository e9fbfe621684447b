// SPDX-License-Identifier: MIT
/// Reads the instructions of kernels from a cubin without a disassembler. A cubin is an ELF file
/// with one section .text.<name> per function; from sm_70 to sm_120 an instruction has 128 bits,
/// and the lowest twelve are its opcode. tests/compile/kernels/probe.cu verifies the numbers below
/// for the compiler in use.
#pragma once

#include <cxxabi.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvtilt::test {

struct CubinKernel {
  std::string name;  ///< demangled, without spaces
  /// Counts by mnemonic, of memory accesses also by mnemonic.bytes; "instructions" without padding,
  /// "registers" per thread, and "ahead": accesses to global memory in front of ACQBULK, when
  /// previous kernels may still write it.
  std::map<std::string, int> counts;

  [[nodiscard]] int count(const std::string& what) const {
    const auto found = counts.find(what);
    return found == counts.end() ? 0 : found->second;
  }
};

namespace detail {

inline constexpr std::size_t instruction_bytes = 16;

/// The mnemonic of an opcode that budgets name; all others only count as instructions. An operation
/// has several opcodes, one for each kind of operand.
inline std::string_view mnemonic(int opcode) {
  switch (opcode) {
    case 0x918:
      return "NOP";
    case 0x981:
    case 0x97e:
      return "LDG";  // 0x97e: 32 bytes, sm_100 and later
    case 0x386:
    case 0x986:
      return "STG";
    case 0x983:
      return "LDL";
    case 0x387:
    case 0x987:
      return "STL";
    case 0x984:
      return "LDS";
    case 0x388:
    case 0x988:
      return "STS";
    case 0x980:
      return "LD";  // generic: the compiler does not know the address space
    case 0x385:
    case 0x985:
      return "ST";
    case 0x83b:
      return "LDSM";
    case 0xfae:
      return "LDGSTS";
    case 0x3ba:
      return "UBLKCP";
    case 0x389:
    case 0x589:
    case 0x989:
    case 0xf89:
      return "SHFL";
    case 0x23c:
      return "HMMA";
    case 0x23a:
      return "MOVM";
    case 0xb1d:
      return "BAR";
    case 0x82d:
      return "PREEXIT";  // allows the next kernel to start
    case 0x82e:
      return "ACQBULK";  // waits for previous kernels
    case 0x308:
    case 0x908:
      return "MUFU";
    case 0x943:
    case 0x944:
      return "CALL";
    default:
      return "";
  }
}

inline bool reaches_global_memory(std::string_view name) {
  for (const char* some : {"LDG", "STG", "LD", "ST", "LDGSTS", "UBLKCP"})
    if (name == some) return true;
  return false;
}

/// Bytes per lane of an access, in bits 73 to 75; 0 if the instruction has no such field.
inline int access_bytes(int opcode, std::string_view name, std::uint64_t upper_half) {
  constexpr int bytes[] = {1, 1, 2, 2, 4, 8, 16, 0};
  if (opcode == 0x97e) return 32;
  const bool memory = name == "LDG" || name == "STG" || name == "LDL" || name == "STL" ||
                      name == "LDS" || name == "STS" || name == "LD" || name == "ST";
  return memory ? bytes[upper_half >> 9 & 7] : 0;
}

inline std::string demangle(const std::string& name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string result;
  for (const char* at = status == 0 ? text : name.c_str(); *at != '\0'; ++at)
    if (*at != ' ') result += *at;
  std::free(text);
  return result;
}

/// Reads ELF64, little endian. Every read is bounds-checked; broken files give empty results.
class Elf {
 public:
  struct Section {
    std::string name;
    std::uint32_t type = 0;
    std::uint32_t link = 0;
    std::string_view data;
  };

  explicit Elf(std::string_view file) : file_(file) {
    if (file.substr(0, 5) != std::string_view("\x7f"
                                              "ELF\x02"))
      return;
    const auto start = read<std::uint64_t>(file, 40);
    const auto size = read<std::uint16_t>(file, 58);
    const auto count = read<std::uint16_t>(file, 60);
    const auto names = read<std::uint16_t>(file, 62);
    if (!start || !size || !count || !names || *names >= *count) return;
    std::vector<std::uint32_t> name_offsets;
    for (std::uint64_t i = 0; i < *count; ++i) {
      const std::string_view header = part(*start + i * *size, 64);
      if (header.size() != 64) return;
      Section section;
      name_offsets.push_back(*read<std::uint32_t>(header, 0));
      section.type = *read<std::uint32_t>(header, 4);
      section.link = *read<std::uint32_t>(header, 40);
      const std::uint64_t bytes = *read<std::uint64_t>(header, 32);
      constexpr std::uint32_t no_bits = 8;
      if (section.type != no_bits) {
        section.data = part(*read<std::uint64_t>(header, 24), bytes);
        if (section.data.size() != bytes) return;
      }
      sections_.push_back(section);
    }
    for (std::size_t i = 0; i < sections_.size(); ++i)
      sections_[i].name = text(sections_[*names].data, name_offsets[i]);
    whole_ = true;
  }

  [[nodiscard]] bool whole() const { return whole_; }
  [[nodiscard]] const std::vector<Section>& sections() const { return sections_; }

  template <class T>
  [[nodiscard]] static std::optional<T> read(std::string_view bytes, std::size_t at) {
    if (at > bytes.size() || bytes.size() - at < sizeof(T)) return {};
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
  }

  /// Name of a symbol of the first symbol table.
  [[nodiscard]] std::string symbol(std::uint32_t index) const {
    constexpr std::uint32_t symbol_table = 2;
    constexpr std::size_t symbol_bytes = 24;
    for (const Section& section : sections_) {
      if (section.type != symbol_table || section.link >= sections_.size()) continue;
      const auto name = read<std::uint32_t>(section.data, index * symbol_bytes);
      return name ? text(sections_[section.link].data, *name) : "";
    }
    return "";
  }

 private:
  [[nodiscard]] std::string_view part(std::uint64_t start, std::uint64_t bytes) const {
    return start > file_.size() ? std::string_view() : file_.substr(start, bytes);
  }
  static std::string text(std::string_view table, std::size_t at) {
    if (at >= table.size()) return "";
    return std::string(table.substr(at, table.find('\0', at) - at));
  }

  std::string_view file_;
  std::vector<Section> sections_;
  bool whole_ = false;
};

}  // namespace detail

/// All functions of a cubin; none if the file is not one.
inline std::vector<CubinKernel> read_cubin(std::string_view file) {
  using detail::Elf;
  const Elf elf(file);
  if (!elf.whole()) return {};
  std::map<std::string, int> registers;
  for (const Elf::Section& section : elf.sections()) {
    // Attributes: format, attribute, 16 bits that hold a value or, in format 4, its bytes.
    if (section.name != ".nv.info") continue;
    constexpr int sized = 4;
    constexpr int register_count = 0x2f;
    for (std::size_t at = 0; at + 4 <= section.data.size();) {
      const int format = *Elf::read<std::uint8_t>(section.data, at);
      const int attribute = *Elf::read<std::uint8_t>(section.data, at + 1);
      const std::uint16_t bytes = *Elf::read<std::uint16_t>(section.data, at + 2);
      const auto symbol = Elf::read<std::uint32_t>(section.data, at + 4);
      const auto count = Elf::read<std::uint32_t>(section.data, at + 8);
      if (format == sized && attribute == register_count && symbol && count)
        registers[elf.symbol(*symbol)] = static_cast<int>(*count);
      at += 4 + (format == sized ? bytes : 0u);
    }
  }

  std::vector<CubinKernel> kernels;
  for (const Elf::Section& section : elf.sections()) {
    if (section.name.compare(0, 6, ".text.") != 0) continue;
    const std::string mangled = section.name.substr(6);
    CubinKernel kernel{detail::demangle(mangled), {}};
    kernel.counts["registers"] = registers[mangled];
    int reached = 0;
    for (std::size_t at = 0; at + detail::instruction_bytes <= section.data.size();
         at += detail::instruction_bytes) {
      const int opcode = static_cast<int>(*Elf::read<std::uint64_t>(section.data, at) & 0xfff);
      const std::uint64_t upper = *Elf::read<std::uint64_t>(section.data, at + 8);
      const std::string name(detail::mnemonic(opcode));
      if (name == "NOP") continue;
      ++kernel.counts["instructions"];
      if (name.empty()) continue;
      ++kernel.counts[name];
      if (name == "ACQBULK") kernel.counts["ahead"] = reached;
      reached += detail::reaches_global_memory(name);
      if (const int bytes = detail::access_bytes(opcode, name, upper); bytes != 0)
        ++kernel.counts[name + "." + std::to_string(bytes)];
    }
    kernels.push_back(std::move(kernel));
  }
  return kernels;
}

}  // namespace kvtilt::test
