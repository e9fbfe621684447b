// SPDX-License-Identifier: MIT
#include <kvtilt/cpu/isa.hpp>

#include "support/isas.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>

namespace kvtilt {
namespace {

using testing::HasSubstr;

/// KVTILT_ISA for the duration of a scope; null: unset.
class IsaVariable {
 public:
  explicit IsaVariable(const char* value) {
    if (const char* old = std::getenv("KVTILT_ISA")) saved_ = old;
    set(value);
  }
  ~IsaVariable() { set(saved_ ? saved_->c_str() : nullptr); }
  IsaVariable(const IsaVariable&) = delete;
  IsaVariable& operator=(const IsaVariable&) = delete;

 private:
  static void set(const char* value) {
    if (value != nullptr)
      setenv("KVTILT_ISA", value, 1);
    else
      unsetenv("KVTILT_ISA");
  }
  std::optional<std::string> saved_;
};

TEST(Isa, BestOneThatRunsIsTheDefault) {
  const IsaVariable variable(nullptr);
  const auto active = active_isa();
  ASSERT_TRUE(active.ok()) << active.message();
  EXPECT_EQ(*active, test::usable_isas().back());
}

TEST(Isa, EmptyVariableForcesNothing) {
  const IsaVariable variable("");
  const auto active = active_isa();
  ASSERT_TRUE(active.ok());
  EXPECT_EQ(*active, test::usable_isas().back());
}

TEST(Isa, VariableForcesOne) {
  for (const Isa isa : all_isas) {
    const IsaVariable variable(to_string(isa));
    const auto active = active_isa();
    EXPECT_EQ(active.ok(), check_isa(isa).ok());
    if (active.ok()) {
      EXPECT_EQ(*active, isa);
    } else {
      EXPECT_EQ(active.code(), ErrorCode::Unsupported) << "never a fallback";
    }
  }
}

TEST(Isa, ArgumentBeatsTheVariable) {
  for (const char* name : {"scalar", "avx2", "avx512", "neon", "nonsense"})
    for (const Isa isa : test::usable_isas()) {
      const IsaVariable variable(name);
      const auto active = active_isa(isa);
      ASSERT_TRUE(active.ok()) << name;
      EXPECT_EQ(*active, isa);
    }
}

TEST(IsaHostile, UnknownNamesAreRefused) {
  for (const std::string name :
       {"AVX2", "avx", "avx22", "avx512f", "avxvnni", " avx2", "scalar ", "neon ", "0", "best"}) {
    const IsaVariable variable(name.c_str());
    const auto active = active_isa();
    EXPECT_EQ(active.code(), ErrorCode::InvalidArgument) << name;
    EXPECT_THAT(std::string(active.message()), HasSubstr("KVTILT_ISA is '" + name + "'"));
    for (const Isa isa : all_isas)
      EXPECT_THAT(std::string(active.message()), HasSubstr(to_string(isa)));
  }
}

TEST(IsaHostile, NumbersThatAreNoInstructionSetAreRefused) {
  EXPECT_EQ(check_isa(static_cast<Isa>(77)).code(), ErrorCode::Unsupported);
  EXPECT_EQ(std::string(check_isa(static_cast<Isa>(77)).message()), "77 is no instruction set");
  EXPECT_FALSE(check_isa(static_cast<Isa>(std::size(all_isas))).ok());
  EXPECT_EQ(active_isa(static_cast<Isa>(77)).code(), ErrorCode::Unsupported);
}

TEST(IsaHostile, LongNamesAreCut) {
  const std::string name(100000, 'x');
  const IsaVariable variable(name.c_str());
  EXPECT_THAT(std::string(active_isa().message()), HasSubstr("x', expected scalar, avx2, "));
}

TEST(Isa, WhatIsNotCompiledSaysSo) {
  for (const Isa isa : all_isas) {
    const Status status = check_isa(isa);
    if (is_compiled(isa) && is_runnable(isa)) {
      EXPECT_TRUE(status.ok());
      continue;
    }
    EXPECT_EQ(status.code(), ErrorCode::Unsupported);
    EXPECT_THAT(std::string(status.message()), HasSubstr(to_string(isa)));
    EXPECT_EQ(active_isa(isa).code(), ErrorCode::Unsupported);
  }
}

TEST(Isa, SomethingAlwaysRuns) {
  EXPECT_FALSE(test::usable_isas().empty());
  EXPECT_TRUE(is_runnable(Isa::Scalar));
  EXPECT_EQ(is_runnable(Isa::Neon), KVTILT_ARM64 == 1);
}

TEST(Isa, WeakerThanTheCommandLineIsLeftOut) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  constexpr bool avx512 = true;
#else
  constexpr bool avx512 = false;
#endif
#if defined(__AVXVNNI__) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
  constexpr bool avx_vnni = true;
#else
  constexpr bool avx_vnni = false;
#endif
#if (defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)) || defined(__aarch64__)
  EXPECT_FALSE(is_compiled(Isa::Scalar));
#else
  EXPECT_TRUE(is_compiled(Isa::Scalar));
#endif
  EXPECT_EQ(is_compiled(Isa::Avx2), KVTILT_X86 == 1 && !avx_vnni && !avx512);
  EXPECT_EQ(is_compiled(Isa::AvxVnni), KVTILT_X86 == 1 && !avx512);
  EXPECT_EQ(is_compiled(Isa::Avx512), KVTILT_X86 == 1);
#if defined(__ARM_FEATURE_DOTPROD)
  constexpr bool dotprod = true;
#else
  constexpr bool dotprod = false;
#endif
  EXPECT_EQ(is_compiled(Isa::Neon), KVTILT_ARM64 == 1 && !dotprod);
  EXPECT_EQ(is_compiled(Isa::NeonDotprod), KVTILT_ARM64 == 1);
}

#if defined(__linux__)
/// The features that /proc/cpuinfo lists.
std::string processor_flags() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("flags") || line.starts_with("Features")) return line + " ";
  return {};
}

TEST(Isa, RunsWhatTheKernelLists) {
#if KVTILT_X86
  const std::string flags = processor_flags();
#else
  // Under an emulator, /proc/cpuinfo describes the host.
  const char* emulated = std::getenv("KVTILT_EMULATED_FEATURES");
  const std::string flags = emulated != nullptr ? emulated : processor_flags();
#endif
  if (flags.empty()) GTEST_SKIP() << "/proc/cpuinfo lists no flags";
  const auto listed = [&](std::string name) {
    return flags.find(" " + name + " ") != std::string::npos;
  };
  const bool avx2 = listed("avx2") && listed("fma") && listed("f16c");
  EXPECT_EQ(is_runnable(Isa::Avx2), avx2);
  EXPECT_EQ(is_runnable(Isa::AvxVnni), avx2 && listed("avx_vnni"));
  EXPECT_EQ(is_runnable(Isa::Avx512), avx2 && listed("avx512bw") && listed("avx512dq") &&
                                          listed("avx512vl") && listed("avx512_vnni"));
  EXPECT_EQ(is_runnable(Isa::Neon), listed("asimd"));
  EXPECT_EQ(is_runnable(Isa::NeonDotprod), listed("asimddp"));
}
#endif

TEST(Isa, HasANameEach) {
  EXPECT_STREQ(to_string(Isa::Scalar), "scalar");
  EXPECT_STREQ(to_string(Isa::Avx2), "avx2");
  EXPECT_STREQ(to_string(Isa::AvxVnni), "avx_vnni");
  EXPECT_STREQ(to_string(Isa::Avx512), "avx512");
  EXPECT_STREQ(to_string(Isa::Neon), "neon");
  EXPECT_STREQ(to_string(Isa::NeonDotprod), "neon_dotprod");
  EXPECT_EQ(std::size(all_isas), 6u);
}

}  // namespace
}  // namespace kvtilt
