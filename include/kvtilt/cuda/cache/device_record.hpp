// SPDX-License-Identifier: MIT
/// Errors that only the device sees: written by kernels, read by poll().
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/cache/layer_view.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/unroll.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>

namespace kvtilt::cuda {

/// Keeps the first error and counts all. One thread calls it. The fault is written last: a reader
/// that finds it finds the whole error. The count comes first: an error that finds the record
/// claimed is counted before poll() frees the record.
template <class Threads>
KVTILT_HD void record_error(const Threads& threads, DeviceRecord* record,
                            const DeviceRecord& error) {
  (void)threads.atomic_add(&record->count, error.count);
  threads.fence();
  if (threads.atomic_compare_and_swap(&record->claimed, 0, 1) != 0) return;
  record->layer = error.layer;
  record->sequence = error.sequence;
  record->token = error.token;
  record->head = error.head;
  record->channel = error.channel;
  record->value = error.value;
  record->first_row = error.first_row;
  record->rows = error.rows;
  threads.fence();
  record->fault = error.fault;
}

template <class Threads>
KVTILT_HD void record_error(const Threads& threads, DeviceRecords* records,
                            const DeviceRecord& error) {
  const bool repaired = error.fault == DeviceFault::ElementRepaired;
  record_error(threads, repaired ? &records->repaired : &records->refused, error);
}

/// A fault of a whole sequence in one layer.
KVTILT_HD inline DeviceRecord sequence_fault(DeviceFault fault, int layer, int sequence,
                                             std::int64_t token) {
  return {fault, 1, layer, sequence, token, -1, -1, 0.0f};
}

/// Invalid rows, first those of sequence `index` of a batch, of `in_all` rows.
KVTILT_HD inline DeviceRecord rows_fault(DeviceFault fault, int layer, int index,
                                         const BatchRows& rows, std::int64_t in_all) {
  DeviceRecord error = sequence_fault(fault, layer, index, rows.first(index + 1));
  error.first_row = static_cast<std::int32_t>(rows.first(index));
  error.rows = static_cast<std::int32_t>(in_all);
  return error;
}

/// Whether the rows of all sequences of a batch are valid. If not, nothing may be done, since plans
/// rely on all of them, and one block records it. A warp calls it; it loads nothing without indptr.
///
/// in_all  rows of the tensors
/// fault   BadAppendRows or BadAttendRows
template <class Threads>
KVTILT_HD bool rows_are_sound(const Threads& threads, const LayerView& layer, const Batch& batch,
                              const BatchRows& rows, std::int64_t in_all, DeviceFault fault) {
  if (rows.indptr == nullptr) return true;
  constexpr std::uint32_t none = 0xffffffffu;
  std::uint32_t wrong = none;
  KVTILT_DEVICE_LOOP
  for (int i = threads.lane(); i < batch.count; i += warp_lanes)
    if (wrong == none && !rows.are_sound(i, in_all)) wrong = static_cast<std::uint32_t>(i);
  wrong = threads.min_over_warp(wrong);
  if (wrong == none) return true;
  if (threads.block() == 0 && threads.thread() == 0)
    record_error(threads, layer.records,
                 rows_fault(fault, layer.layer, static_cast<int>(wrong), rows, in_all));
  return false;
}

KVTILT_HD constexpr ErrorCode error_code(DeviceFault fault) {
  switch (fault) {
    case DeviceFault::None:
      return ErrorCode::Ok;
    case DeviceFault::ElementRepaired:
      return ErrorCode::InvalidValue;
    case DeviceFault::NoPageLeft:
    case DeviceFault::TableFull:
      return ErrorCode::OutOfCapacity;
    case DeviceFault::TruncationRefused:
    case DeviceFault::RemovalRefused:
    case DeviceFault::ForkRefused:
    case DeviceFault::UnpackRefused:
    case DeviceFault::WindowFreed:
    case DeviceFault::TooMuchWork:
      return ErrorCode::InvalidArgument;
    case DeviceFault::PageNotFull:
      return ErrorCode::Unsupported;
    case DeviceFault::NoRoomForIndices:
      return ErrorCode::OutOfMemory;
    default:
      return ErrorCode::Corrupt;
  }
}

namespace detail {

/// What is wrong, without the layer and the count.
template <std::size_t Size>
void describe(const DeviceRecord& record, int key_dim, char (&text)[Size]) {
  const int sequence = record.sequence;
  const long long token = static_cast<long long>(record.token);
  const bool is_key = record.channel < key_dim;
  switch (record.fault) {
    case DeviceFault::ElementRepaired:
      std::snprintf(text, Size,
                    "%s of sequence slot %d, position %lld, kv head %d, channel %d (from "
                    "pack_pages: of page %d, row %lld) is %g: NaN was stored as 0, what is too "
                    "large as the largest that the format holds",
                    is_key ? "key" : "value", sequence, token, record.head,
                    is_key ? record.channel : record.channel - key_dim, sequence, token,
                    static_cast<double>(record.value));
      return;
    case DeviceFault::NoPageLeft:
      std::snprintf(text, Size,
                    "sequence slot %d has no page left for the tokens from position %lld on, they "
                    "were not stored; reserve more",
                    sequence, token);
      return;
    case DeviceFault::TableFull:
      std::snprintf(text, Size,
                    "the page table of sequence slot %d, of %lld tokens, has no room for pages "
                    "that were reserved; refresh() after appends that the host was not told of, "
                    "then reserve again",
                    sequence, token);
      return;
    case DeviceFault::TruncationRefused:
      std::snprintf(text, Size,
                    "sequence slot %d was not truncated to %lld tokens: the length is negative, or "
                    "the window has freed tokens that it needs",
                    sequence, token);
      return;
    case DeviceFault::RemovalRefused:
      std::snprintf(text, Size,
                    "nothing was removed from sequence slot %d from position %lld on: pages do not "
                    "begin and end there, or are not all stored",
                    sequence, token);
      return;
    case DeviceFault::ForkRefused:
      std::snprintf(text, Size,
                    "sequence slot %d, of %lld tokens, was not forked: its length or pages are not "
                    "those that the host knows; refresh() first",
                    sequence, token);
      return;
    case DeviceFault::UnpackRefused:
      std::snprintf(text, Size,
                    "position %lld of sequence slot %d was not unpacked: it is not stored", token,
                    sequence);
      return;
    case DeviceFault::WindowFreed:
      std::snprintf(text, Size,
                    "the oldest query of sequence slot %d sees back to position %lld, but the "
                    "window has freed tokens from there on: append fewer tokens at once, keep more "
                    "recent_tokens, or call attend_prefill before appending them",
                    sequence, token);
      return;
    case DeviceFault::PageNotFull:
      std::snprintf(text, Size,
                    "sequence slot %d cannot be exported: its page at position %lld is not full",
                    sequence, token);
      return;
    case DeviceFault::NoRoomForIndices:
      std::snprintf(text, Size, "no room for the pages of sequence slot %d in the exported indices",
                    sequence);
      return;
    case DeviceFault::BadTable:
      std::snprintf(text, Size,
                    "the engine's table or indptr of sequence %d cannot be meant: %lld tokens, or "
                    "a page outside the pool",
                    sequence, token);
      return;
    case DeviceFault::PageOutsidePool:
      std::snprintf(text, Size, "rows from %lld on were not packed: page %d is outside its pool",
                    token, sequence);
      return;
    case DeviceFault::BadAppendRows:
    case DeviceFault::BadAttendRows:
      std::snprintf(text, Size,
                    "nothing was %s any sequence of a batch: indptr gives sequence %d rows %d up "
                    "to %lld of %d; it must ascend from 0 on, to the number of rows at most",
                    record.fault == DeviceFault::BadAppendRows ? "appended to" : "attended to for",
                    sequence, record.first_row, token, record.rows);
      return;
    case DeviceFault::TooMuchWork:
      std::snprintf(text, Size,
                    "attend_prefill did nothing: the launch has %lld units of work, of 2147483646 "
                    "at most; pass fewer tokens or sequences at once",
                    token);
      return;
    default:
      std::snprintf(text, Size, "unknown fault in sequence slot %d at position %lld", sequence,
                    token);
  }
}

}  // namespace detail

/// The error in words. `key_dim` is that of the record's layer.
inline Status to_status(const DeviceRecord& record, int key_dim) {
  if (record.fault == DeviceFault::None) return {};
  char text[400];
  detail::describe(record, key_dim, text);
  return Status::error(error_code(record.fault), "layer %d: %s. %u %s in all", record.layer, text,
                       record.count,
                       record.fault == DeviceFault::ElementRepaired ? "elements" : "errors");
}

}  // namespace kvtilt::cuda
