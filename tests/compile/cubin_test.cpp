// SPDX-License-Identifier: MIT
// The reader of cubins, on hand-made files; kernels/probe.cu tests it on a real compiler's.
#include "support/cubin.hpp"

#include "support/cubin_budget.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace kvtilt::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

template <class T>
void put(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string instruction(int opcode, int width = 0) {
  std::string bytes;
  put(bytes, static_cast<std::uint64_t>(opcode) | 0x7000u);  // any predicate
  put(bytes, static_cast<std::uint64_t>(width) << 9 | 0x123u);
  return bytes;
}

struct Section {
  std::string name;
  std::uint32_t type;
  std::uint32_t link;
  std::string data;
};

std::string elf(std::vector<Section> sections) {
  std::string names(1, '\0');
  std::vector<std::uint32_t> name_offsets;
  sections.push_back({".shstrtab", 3, 0, ""});
  for (const Section& section : sections) {
    name_offsets.push_back(static_cast<std::uint32_t>(names.size()));
    names += section.name + '\0';
  }
  sections.back().data = names;
  std::string file(
      "\x7f"
      "ELF\x02\x01",
      6);
  file.resize(64);
  std::string headers;
  for (std::size_t i = 0; i < sections.size(); ++i) {
    put(headers, name_offsets[i]);
    put(headers, sections[i].type);
    put(headers, std::uint64_t{0});
    put(headers, std::uint64_t{0});
    put(headers, std::uint64_t{file.size()});
    put(headers, std::uint64_t{sections[i].data.size()});
    put(headers, sections[i].link);
    put(headers, std::uint32_t{0});
    put(headers, std::uint64_t{0});
    put(headers, std::uint64_t{0});
    file += sections[i].data;
  }
  const std::uint64_t start = file.size();
  const std::uint16_t fields[3] = {64, static_cast<std::uint16_t>(sections.size()),
                                   static_cast<std::uint16_t>(sections.size() - 1)};
  std::memcpy(file.data() + 40, &start, 8);
  std::memcpy(file.data() + 58, fields, 6);
  return file + headers;
}

std::string sample() {
  std::string symbols(24, '\0');
  put(symbols, std::uint32_t{1});
  symbols.resize(48);
  std::string info;
  put(info, std::uint32_t{0x00012f03});  // an attribute without a payload
  put(info, std::uint32_t{0x00082f04});
  put(info, std::uint32_t{1});
  put(info, std::uint32_t{96});
  return elf({{".text._Z6kernelILi4EEvPf", 1, 0,
               instruction(0x981, 6) + instruction(0x981, 4) + instruction(0x983, 5) +
                   instruction(0x389) + instruction(0x222) + instruction(0x918)},
              {".symtab", 2, 2, symbols},
              {".strtab", 3, 0, std::string("\0_Z6kernelILi4EEvPf\0", 20)},
              {".nv.info", 1, 0, info}});
}

TEST(Cubin, CountsInstructionsAndBytes) {
  const std::string file = sample();
  const std::vector<CubinKernel> kernels = read_cubin(file);
  ASSERT_EQ(kernels.size(), 1u);
  const CubinKernel& kernel = kernels[0];
  EXPECT_EQ(kernel.name, "voidkernel<4>(float*)");
  EXPECT_EQ(kernel.count("instructions"), 5) << "without padding";
  EXPECT_EQ(kernel.count("registers"), 96);
  EXPECT_EQ(kernel.count("LDG"), 2);
  EXPECT_EQ(kernel.count("LDG.16"), 1);
  EXPECT_EQ(kernel.count("LDG.4"), 1);
  EXPECT_EQ(kernel.count("LDL.8"), 1);
  EXPECT_EQ(kernel.count("SHFL"), 1);
  EXPECT_EQ(kernel.count("HMMA"), 0);
}

TEST(Cubin, ChecksBudgets) {
  const std::string file = sample();
  const std::vector<CubinKernel> kernels = read_cubin(file);
  std::vector<CubinRule> rules = parse_budget(
      "# nothing\n"
      "* kernel<4> LDG=2 LDG<=2 LDG>=2 SHFL=LDL  # all kept\n"
      "\n"
      "sm_90 * LDL=0 LDG=LDG.16 instructions<=4 instructions>=6\n"
      "sm_80 * LDG=9\n"
      "* other LDG=9\n"
      "* * LDG LDG==2 =2 LDG<2\n");
  ASSERT_EQ(rules.size(), 5u);
  EXPECT_THAT(
      check_budget(rules, "x.sm_90.cubin", kernels),
      ElementsAre(HasSubstr("line 4: voidkernel<4>(float*): LDL=0, but LDL is 1"),
                  HasSubstr("LDG=LDG.16, but LDG is 2 and LDG.16 is 1"),
                  HasSubstr("instructions<=4, but instructions is 5"),
                  HasSubstr("instructions>=6, but instructions is 5"), HasSubstr("'LDG' is not"),
                  HasSubstr("'=='"), HasSubstr("'=2' is not"), HasSubstr("'<'")));
  EXPECT_EQ(rules[0].matches, 1);
  EXPECT_EQ(rules[2].matches, 0) << "another machine";
  EXPECT_EQ(rules[3].matches, 0) << "another kernel";
}

TEST(Cubin, ChecksDifferencesOfTwoKernels) {
  const std::vector<CubinKernel> kernels = {{"one<4>()", {{"LDG", 3}, {"SHFL", 2}, {"STG", 1}}},
                                            {"two<4>()", {{"LDG", 8}, {"SHFL", 2}}},
                                            {"two<8>()", {{"LDG", 1}}}};
  std::vector<CubinRule> rules = parse_budget(
      "* two<4> - one<4> LDG=5 SHFL=0 STG<=0 LDG<=4\n"
      "* two<8> - one<8> LDG=9\n"
      "* two<4> -\n");
  ASSERT_EQ(rules.size(), 3u);
  EXPECT_THAT(check_budget(rules, "x.sm_90.cubin", kernels),
              ElementsAre(HasSubstr("line 1: two<4>() - one<4>(): LDG<=4, but LDG is 5"),
                          HasSubstr("line 3: '-' is not")));
  EXPECT_EQ(rules[0].matches, 1);
  EXPECT_EQ(rules[1].matches, 0) << "nothing to compare with";
}

TEST(CubinHostile, ReadsBrokenFilesWithoutHarm) {
  EXPECT_THAT(read_cubin(""), IsEmpty());
  EXPECT_THAT(read_cubin("not a cubin"), IsEmpty());
  const std::string whole = sample();
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
    const std::string cut = whole.substr(0, bytes);
    EXPECT_THAT(read_cubin(cut), IsEmpty()) << bytes;
  }
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    for (const char value : {'\0', '\x7f', '\xff'}) {
      damaged[at] = value;
      (void)read_cubin(damaged);
    }
  }
}

}  // namespace
}  // namespace kvtilt::test
