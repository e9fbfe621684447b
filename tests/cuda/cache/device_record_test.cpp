// SPDX-License-Identifier: MIT
#include <kvtilt/cuda/cache/device_record.hpp>

#include "support/emulated_threads.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace kvtilt::cuda {
namespace {

using test::EmulatedThreads;
using testing::HasSubstr;

TEST(DeviceRecord, KeepsOneErrorAndCountsAll) {
  DeviceRecord record{};
  test::emulate(2, 32, 0, [&](EmulatedThreads& threads) {
    if (threads.thread() == 0)
      record_error(threads, &record,
                   sequence_error(ErrorCode::OutOfCapacity, 7, threads.block(), 100));
  });
  EXPECT_EQ(record.code, static_cast<std::uint32_t>(ErrorCode::OutOfCapacity));
  EXPECT_EQ(record.count, 2u);
  EXPECT_EQ(record.layer, 7);
  EXPECT_EQ(record.token, 100);
}

TEST(DeviceRecord, WhatWasRepairedHidesNothingThatWasRefused) {
  DeviceRecords records{};
  const auto record = [&](ErrorCode code, int sequence) {
    test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
      if (threads.thread() == 0)
        record_error(threads, &records, sequence_error(code, 0, sequence, 0));
    });
  };
  EXPECT_EQ(records.first().code, 0u);
  record(ErrorCode::InvalidValue, 1);
  EXPECT_EQ(records.first().sequence, 1);
  record(ErrorCode::OutOfCapacity, 2);
  record(ErrorCode::InvalidValue, 3);
  EXPECT_EQ(records.first().sequence, 2);
  EXPECT_EQ(records.refused.count, 1u);
  EXPECT_EQ(records.repaired.sequence, 1);
  EXPECT_EQ(records.repaired.count, 2u);
}

/// Copies the record whenever others may read it.
struct WatchedThread {
  DeviceRecord* record;
  std::vector<DeviceRecord>* seen;
  std::uint32_t atomic_add(std::uint32_t* where, std::uint32_t value) const {
    seen->push_back(*record);
    const std::uint32_t before = *where;
    *where += value;
    return before;
  }
  std::uint32_t atomic_compare_and_swap(std::uint32_t* where, std::uint32_t expected,
                                        std::uint32_t value) const {
    seen->push_back(*record);
    const std::uint32_t before = *where;
    if (before == expected) *where = value;
    return before;
  }
  void fence() const { seen->push_back(*record); }
};

TEST(DeviceRecord, ACodeIsThereWhenTheRestIs) {
  DeviceRecord record{};
  std::vector<DeviceRecord> seen;
  const WatchedThread thread{&record, &seen};
  record_error(thread, &record, sequence_error(ErrorCode::OutOfCapacity, 7, 3, 100));
  for (const DeviceRecord& each : seen) EXPECT_EQ(each.code, 0u);
  EXPECT_EQ(seen.back().layer, 7);
  EXPECT_EQ(seen.back().token, 100);
  EXPECT_EQ(record.code, static_cast<std::uint32_t>(ErrorCode::OutOfCapacity));

  // An error is counted before the record is claimed: poll() relies on it.
  seen.clear();
  record_error(thread, &record, sequence_error(ErrorCode::InvalidArgument, 1, 2, 3));
  EXPECT_EQ(seen.back().count, 2u);
  EXPECT_EQ(record.layer, 7);

  // While poll() has cleared the code but not the claim, errors are only counted.
  record.code = 0;
  record_error(thread, &record, sequence_error(ErrorCode::InvalidArgument, 1, 2, 3));
  EXPECT_EQ(record.code, 0u);
  record.claimed = 0;
  record_error(thread, &record, sequence_error(ErrorCode::InvalidArgument, 1, 2, 3));
  EXPECT_EQ(record.code, static_cast<std::uint32_t>(ErrorCode::InvalidArgument));
  EXPECT_EQ(record.layer, 1);
}

TEST(DeviceRecord, NamesThePlace) {
  DeviceRecord record{
      static_cast<std::uint32_t>(ErrorCode::InvalidValue), 3, 1, 2, 40, 5, 70, 1e6f};
  EXPECT_THAT(std::string(to_status(record, 64).message()),
              HasSubstr("layer 1: value of sequence slot 2, position 40, kv head 5, channel 6 is "
                        "1e+06"));
  EXPECT_THAT(std::string(to_status(record, 128).message()), HasSubstr("key of sequence slot 2"));
  EXPECT_EQ(to_status(record, 128).code(), ErrorCode::InvalidValue);
  record.code = 0;
  EXPECT_TRUE(to_status(record, 64).ok());
}

TEST(DeviceRecord, SaysWhatToDo) {
  EXPECT_THAT(
      std::string(to_status(sequence_error(ErrorCode::OutOfCapacity, 1, 2, 3), 64).message()),
      HasSubstr("reserve more"));
  EXPECT_THAT(std::string(to_status(sequence_error(ErrorCode::Unsupported, 1, 2, 3), 64).message()),
              HasSubstr("page at position 3 is not full"));
  const std::int32_t indptr[] = {0, 3, 103};
  EXPECT_THAT(
      std::string(to_status(rows_error(1, 1, {indptr, 0}, 50, DeviceCall::Append), 64).message()),
      HasSubstr("layer 1: nothing was appended to any sequence of a batch: indptr gives "
                "sequence 1 rows 3 up to 103 of 50"));
  EXPECT_EQ(to_status(sequence_error(ErrorCode::InvalidArgument, 1, 2, 3), 64).code(),
            ErrorCode::InvalidArgument);
}

}  // namespace
}  // namespace kvtilt::cuda
