// SPDX-License-Identifier: MIT
#include <kvtilt/core/status.hpp>

#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace kvtilt {
namespace {

Status fail_with(int number) {
  return Status::error(ErrorCode::OutOfCapacity, "no room for %d tokens of %s", number, "layer 3");
}

TEST(Status, IsOkByDefault) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), ErrorCode::Ok);
  EXPECT_TRUE(status.message().empty());
}

TEST(Status, FormatsItsMessage) {
  const Status status = fail_with(7);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), ErrorCode::OutOfCapacity);
  EXPECT_EQ(status.message(), "no room for 7 tokens of layer 3");
}

TEST(Status, MovesItsMessage) {
  Status status = fail_with(7);
  const Status moved = std::move(status);
  EXPECT_EQ(moved.message(), "no room for 7 tokens of layer 3");
  static_assert(std::is_nothrow_move_constructible_v<Status>);
  static_assert(!std::is_copy_constructible_v<Status>);
}

TEST(StatusHostile, CutsLongMessages) {
  const std::string text(5000, 'x');
  const Status status = Status::error(ErrorCode::Corrupt, "%s", text.c_str());
  EXPECT_EQ(status.message(), std::string(511, 'x'));
}

TEST(StatusHostile, PercentSignsInArgumentsAreText) {
  EXPECT_EQ(Status::error(ErrorCode::Corrupt, "%s", "%n%s").message(), "%n%s");
}

Status return_early(bool fail, bool& reached_end) {
  KVTILT_RETURN_IF_ERROR(fail ? fail_with(1) : Status());
  reached_end = true;
  return {};
}

TEST(Status, MacroReturnsTheError) {
  bool reached_end = false;
  EXPECT_EQ(return_early(true, reached_end).message(), "no room for 1 tokens of layer 3");
  EXPECT_FALSE(reached_end);
  EXPECT_TRUE(return_early(false, reached_end).ok());
  EXPECT_TRUE(reached_end);
}

Result<int> return_early_as_result() {
  KVTILT_RETURN_IF_ERROR(fail_with(2));
  return 1;
}

TEST(Result, HoldsAValue) {
  Result<int> result = 5;
  ASSERT_TRUE(result.ok());
  EXPECT_TRUE(static_cast<bool>(result));
  EXPECT_EQ(*result, 5);
  EXPECT_EQ(result.code(), ErrorCode::Ok);
  *result = 6;
  EXPECT_EQ(result.value(), 6);
  EXPECT_EQ(std::as_const(result).value(), 6);
}

TEST(Result, HoldsAnError) {
  Result<int> result = fail_with(9);
  EXPECT_FALSE(result.ok());
  EXPECT_FALSE(static_cast<bool>(result));
  EXPECT_EQ(result.code(), ErrorCode::OutOfCapacity);
  EXPECT_EQ(result.message(), "no room for 9 tokens of layer 3");
  EXPECT_EQ(std::move(result).take_status().message(), "no room for 9 tokens of layer 3");
  EXPECT_EQ(return_early_as_result().message(), "no room for 2 tokens of layer 3");
}

TEST(Result, ThrowsTheMessageWhenAskedForAMissingValue) {
  Result<int> result = fail_with(9);
  try {
    (void)result.value();
    FAIL() << "did not throw";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "no room for 9 tokens of layer 3");
  }
  EXPECT_THROW((void)std::as_const(result).value(), std::runtime_error);
  EXPECT_THROW((void)Result<int>(fail_with(1)).value(), std::runtime_error);
}

TEST(Result, GivesATemporaryValueAway) {
  static_assert(std::is_same_v<decltype(std::declval<Result<int>>().value()), int>);
  int sum = 0;
  for (const int x : Result<std::vector<int>>(std::vector{1, 2, 3}).value()) sum += x;
  EXPECT_EQ(sum, 6);
}

TEST(Result, CarriesMoveOnlyValues) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(4);
  EXPECT_EQ(**result, 4);
  EXPECT_EQ(*result->get(), 4);
  EXPECT_EQ(*std::as_const(result)->get(), 4);
  const std::unique_ptr<int> taken = *std::move(result);
  EXPECT_EQ(*taken, 4);
  EXPECT_EQ(*Result<std::unique_ptr<int>>(std::make_unique<int>(3)).value(), 3);
}

}  // namespace
}  // namespace kvtilt
