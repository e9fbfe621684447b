// SPDX-License-Identifier: MIT
#include <kvtilt/cpu/isa.hpp>

#include "support/isas.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
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
  for (const char* name : {"scalar", "avx2", "avx512", "nonsense"})
    for (const Isa isa : test::usable_isas()) {
      const IsaVariable variable(name);
      const auto active = active_isa(isa);
      ASSERT_TRUE(active.ok()) << name;
      EXPECT_EQ(*active, isa);
    }
}

TEST(IsaHostile, UnknownNamesAreRefused) {
  for (const std::string name :
       {"AVX2", "avx", "avx22", "avx512f", " avx2", "scalar ", "neon", "0", "best"}) {
    const IsaVariable variable(name.c_str());
    const auto active = active_isa();
    EXPECT_EQ(active.code(), ErrorCode::InvalidArgument) << name;
    EXPECT_THAT(std::string(active.message()), HasSubstr("KVTILT_ISA is '" + name + "'"));
    EXPECT_THAT(std::string(active.message()), HasSubstr("expected scalar, avx2 or avx512"));
  }
}

TEST(IsaHostile, NumbersThatAreNoInstructionSetAreRefused) {
  EXPECT_EQ(check_isa(static_cast<Isa>(77)).code(), ErrorCode::Unsupported);
  EXPECT_EQ(active_isa(static_cast<Isa>(77)).code(), ErrorCode::Unsupported);
}

TEST(IsaHostile, LongNamesAreCut) {
  const std::string name(100000, 'x');
  const IsaVariable variable(name.c_str());
  EXPECT_THAT(std::string(active_isa().message()), HasSubstr("expected scalar, avx2 or avx512"));
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
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
  EXPECT_FALSE(is_compiled(Isa::Scalar)) << "weaker than what the command line guarantees";
#else
  EXPECT_TRUE(is_compiled(Isa::Scalar));
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  EXPECT_FALSE(is_compiled(Isa::Avx2));
#else
  EXPECT_EQ(is_compiled(Isa::Avx2), KVTILT_X86 == 1);
#endif
  EXPECT_EQ(is_compiled(Isa::Avx512), KVTILT_X86 == 1);
}

TEST(Isa, HasANameEach) {
  EXPECT_STREQ(to_string(Isa::Scalar), "scalar");
  EXPECT_STREQ(to_string(Isa::Avx2), "avx2");
  EXPECT_STREQ(to_string(Isa::Avx512), "avx512");
  EXPECT_EQ(std::size(all_isas), 3u);
}

}  // namespace
}  // namespace kvtilt
