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
                   sequence_fault(DeviceFault::NoPageLeft, 7, threads.block(), 100));
  });
  EXPECT_EQ(record.fault, DeviceFault::NoPageLeft);
  EXPECT_EQ(record.count, 2u);
  EXPECT_EQ(record.layer, 7);
  EXPECT_EQ(record.token, 100);
}

TEST(DeviceRecord, WhatWasRepairedHidesNothingThatWasRefused) {
  DeviceRecords records{};
  const auto record = [&](DeviceFault fault, int sequence) {
    test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
      if (threads.thread() == 0)
        record_error(threads, &records, sequence_fault(fault, 0, sequence, 0));
    });
  };
  EXPECT_EQ(records.first().fault, DeviceFault::None);
  record(DeviceFault::ElementRepaired, 1);
  EXPECT_EQ(records.first().sequence, 1);
  record(DeviceFault::NoPageLeft, 2);
  record(DeviceFault::ElementRepaired, 3);
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

TEST(DeviceRecord, AFaultIsThereWhenTheRestIs) {
  DeviceRecord record{};
  std::vector<DeviceRecord> seen;
  const WatchedThread thread{&record, &seen};
  record_error(thread, &record, sequence_fault(DeviceFault::NoPageLeft, 7, 3, 100));
  for (const DeviceRecord& each : seen) EXPECT_EQ(each.fault, DeviceFault::None);
  EXPECT_EQ(seen.back().layer, 7);
  EXPECT_EQ(seen.back().token, 100);
  EXPECT_EQ(record.fault, DeviceFault::NoPageLeft);

  // An error is counted before the record is claimed: poll() relies on it.
  seen.clear();
  record_error(thread, &record, sequence_fault(DeviceFault::RemovalRefused, 1, 2, 3));
  EXPECT_EQ(seen.back().count, 2u);
  EXPECT_EQ(record.layer, 7);

  // While poll() has cleared the fault but not the claim, errors are only counted.
  record.fault = DeviceFault::None;
  record_error(thread, &record, sequence_fault(DeviceFault::RemovalRefused, 1, 2, 3));
  EXPECT_EQ(record.fault, DeviceFault::None);
  record.claimed = 0;
  record_error(thread, &record, sequence_fault(DeviceFault::RemovalRefused, 1, 2, 3));
  EXPECT_EQ(record.fault, DeviceFault::RemovalRefused);
  EXPECT_EQ(record.layer, 1);
}

TEST(DeviceRecord, KeepsWhichRowsAreInvalid) {
  const std::int32_t indptr[] = {0, 3, 103};
  DeviceRecord record{};
  test::emulate(1, 32, 0, [&](EmulatedThreads& threads) {
    if (threads.thread() == 0)
      record_error(threads, &record, rows_fault(DeviceFault::BadAppendRows, 7, 1, {indptr, 0}, 50));
  });
  EXPECT_EQ(record.sequence, 1);
  EXPECT_EQ(record.first_row, 3);
  EXPECT_EQ(record.token, 103);
  EXPECT_EQ(record.rows, 50);
  EXPECT_EQ(record.head, -1);
  EXPECT_EQ(record.channel, -1);
}

TEST(DeviceRecord, NamesThePlace) {
  DeviceRecord record{DeviceFault::ElementRepaired, 3, 1, 2, 40, 5, 70, 1e6f};
  EXPECT_EQ(to_status(record, 64).message(),
            "layer 1: value of sequence slot 2, position 40, kv head 5, channel 6 (from "
            "pack_pages: of page 2, row 40) is 1e+06: NaN was stored as 0, what is too large as "
            "the largest that the format holds. 3 elements in all");
  EXPECT_THAT(std::string(to_status(record, 128).message()),
              HasSubstr("key of sequence slot 2, position 40, kv head 5, channel 70 (from"));
  record.fault = DeviceFault::None;
  EXPECT_TRUE(to_status(record, 64).ok());
}

TEST(DeviceRecord, SaysWhatHappenedAndWhatToDo) {
  const auto expect = [](const DeviceRecord& record, ErrorCode code, const std::string& text) {
    const Status status = to_status(record, 64);
    EXPECT_EQ(status.code(), code) << text;
    EXPECT_EQ(status.message(), "layer 1: " + text + ". 1 errors in all");
  };
  const auto at = [](DeviceFault fault) { return sequence_fault(fault, 1, 2, 300); };
  expect(at(DeviceFault::NoPageLeft), ErrorCode::OutOfCapacity,
         "sequence slot 2 has no page left for the tokens from position 300 on, they were not "
         "stored; reserve more");
  expect(at(DeviceFault::TableFull), ErrorCode::OutOfCapacity,
         "the page table of sequence slot 2, of 300 tokens, has no room for pages that were "
         "reserved; refresh() after appends that the host was not told of, then reserve again");
  expect(at(DeviceFault::TruncationRefused), ErrorCode::InvalidArgument,
         "sequence slot 2 was not truncated to 300 tokens: the length is negative, or the window "
         "has freed tokens that it needs");
  expect(at(DeviceFault::RemovalRefused), ErrorCode::InvalidArgument,
         "nothing was removed from sequence slot 2 from position 300 on: pages do not begin and "
         "end there, or are not all stored");
  expect(at(DeviceFault::ForkRefused), ErrorCode::InvalidArgument,
         "sequence slot 2, of 300 tokens, was not forked: its length or pages are not those that "
         "the host knows; refresh() first");
  expect(at(DeviceFault::UnpackRefused), ErrorCode::InvalidArgument,
         "position 300 of sequence slot 2 was not unpacked: it is not stored");
  expect(at(DeviceFault::WindowFreed), ErrorCode::InvalidArgument,
         "the oldest query of sequence slot 2 sees back to position 300, but the window has freed "
         "tokens from there on: append fewer tokens at once, keep more recent_tokens, or call "
         "attend_prefill before appending them");
  expect(at(DeviceFault::PageNotFull), ErrorCode::Unsupported,
         "sequence slot 2 cannot be exported: its page at position 300 is not full");
  expect(at(DeviceFault::NoRoomForIndices), ErrorCode::OutOfMemory,
         "no room for the pages of sequence slot 2 in the exported indices");
  expect(at(DeviceFault::BadTable), ErrorCode::Corrupt,
         "the engine's table or indptr of sequence 2 cannot be meant: 300 tokens, or a page "
         "outside the pool");
  expect(at(DeviceFault::PageOutsidePool), ErrorCode::Corrupt,
         "rows from 300 on were not packed: page 2 is outside its pool");
  expect(at(DeviceFault::TooMuchWork), ErrorCode::InvalidArgument,
         "attend_prefill did nothing: the launch has 300 units of work, of 2147483646 at most; "
         "pass fewer tokens or sequences at once");
  expect(at(static_cast<DeviceFault>(99)), ErrorCode::Corrupt,
         "unknown fault in sequence slot 2 at position 300");
  const std::int32_t indptr[] = {0, 3, 103};
  expect(rows_fault(DeviceFault::BadAppendRows, 1, 1, {indptr, 0}, 50), ErrorCode::Corrupt,
         "nothing was appended to any sequence of a batch: indptr gives sequence 1 rows 3 up to "
         "103 of 50; it must ascend from 0 on, to the number of rows at most");
  expect(rows_fault(DeviceFault::BadAttendRows, 1, 1, {indptr, 0}, 50), ErrorCode::Corrupt,
         "nothing was attended to for any sequence of a batch: indptr gives sequence 1 rows 3 up "
         "to 103 of 50; it must ascend from 0 on, to the number of rows at most");
}

}  // namespace
}  // namespace kvtilt::cuda
