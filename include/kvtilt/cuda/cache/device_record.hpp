// SPDX-License-Identifier: MIT
/// Errors that only the device sees: written by kernels, read by poll().
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/cuda/cache/layer_storage.hpp>
#include <kvtilt/cuda/page/fragment_order.hpp>
#include <kvtilt/cuda/unroll.hpp>

#include <cstdint>

namespace kvtilt::cuda {

/// Keeps the first error and counts all. One thread calls it. The code is written last: a reader
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
  record->call = error.call;
  threads.fence();
  record->code = error.code;
}

template <class Threads>
KVTILT_HD void record_error(const Threads& threads, DeviceRecords* records,
                            const DeviceRecord& error) {
  const bool repaired = error.code == static_cast<std::uint32_t>(ErrorCode::InvalidValue);
  record_error(threads, repaired ? &records->repaired : &records->refused, error);
}

/// An error that concerns a whole sequence in one layer.
KVTILT_HD inline DeviceRecord sequence_error(ErrorCode code, int layer, int sequence,
                                             std::int64_t token) {
  return {static_cast<std::uint32_t>(code), 1, layer, sequence, token, -1, -1, 0.0f};
}

/// Attention whose oldest query sees back to `position`, where a window has freed tokens.
KVTILT_HD inline DeviceRecord freed_error(int layer, int sequence, std::int64_t position) {
  DeviceRecord error = sequence_error(ErrorCode::InvalidArgument, layer, sequence, position);
  error.call = DeviceCall::Attend;
  return error;
}

/// A launch with invalid rows, first those of sequence `index` of its batch: from row `head` up to
/// `token`, of `channel` in all.
KVTILT_HD inline DeviceRecord rows_error(int layer, int index, const BatchRows& rows,
                                         std::int64_t in_all, DeviceCall call) {
  return {static_cast<std::uint32_t>(ErrorCode::Corrupt),
          1,
          layer,
          index,
          rows.first(index + 1),
          static_cast<std::int32_t>(rows.first(index)),
          static_cast<std::int32_t>(in_all),
          0.0f,
          0,
          call};
}

/// Whether the rows of all sequences of a batch are valid. If not, nothing may be done, since plans
/// rely on all of them, and one block records it. A warp calls it; it loads nothing without indptr.
///
/// in_all  rows of the tensors
template <class Threads>
KVTILT_HD bool rows_are_sound(const Threads& threads, const LayerStorage& layer, const Batch& batch,
                              const BatchRows& rows, std::int64_t in_all, DeviceCall call) {
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
                 rows_error(layer.layer, static_cast<int>(wrong), rows, in_all, call));
  return false;
}

/// The error in words. `key_dim` is that of the record's layer.
inline Status to_status(const DeviceRecord& record, int key_dim) {
  const ErrorCode code = static_cast<ErrorCode>(record.code);
  const long long token = static_cast<long long>(record.token);
  switch (code) {
    case ErrorCode::Ok:
      return {};
    case ErrorCode::InvalidValue: {
      const bool is_key = record.channel < key_dim;
      return Status::error(
          code,
          "layer %d: %s of sequence slot %d, position %lld, kv head %d, channel %d "
          "is %g: NaN was stored as 0, what is too large as the largest that the "
          "format holds; %u elements in all",
          record.layer, is_key ? "key" : "value", record.sequence, token, record.head,
          is_key ? record.channel : record.channel - key_dim, static_cast<double>(record.value),
          record.count);
    }
    case ErrorCode::OutOfCapacity:
      return Status::error(
          code,
          "layer %d: sequence slot %d has no page left for the tokens from position "
          "%lld on, they were not stored; reserve more. %u errors in all",
          record.layer, record.sequence, token, record.count);
    case ErrorCode::InvalidArgument:
      if (record.call == DeviceCall::Attend)
        return Status::error(code,
                             "layer %d: the oldest query of sequence slot %d sees back to position "
                             "%lld, but the window has freed tokens from there on: append fewer "
                             "tokens at once, keep more recent_tokens, or call attend_prefill "
                             "before appending them. %u errors in all",
                             record.layer, record.sequence, token, record.count);
      return Status::error(code,
                           "layer %d: a truncation, removal, fork or unpacking of sequence slot %d "
                           "from position %lld on was refused on the device: tokens it needs are "
                           "not there, pages do not end there, or lengths are not those that the "
                           "host knows. %u errors in all",
                           record.layer, record.sequence, token, record.count);
    case ErrorCode::Unsupported:
      return Status::error(
          code,
          "layer %d: sequence slot %d cannot be exported: its page at position %lld "
          "is not full. %u errors in all",
          record.layer, record.sequence, token, record.count);
    case ErrorCode::Corrupt:
      if (record.call == DeviceCall::PackPages)
        return Status::error(code,
                             "layer %d: rows from %lld on were not packed: page %d is outside the "
                             "pool. %u errors in all",
                             record.layer, token, record.sequence, record.count);
      if (record.call != DeviceCall::Any)
        return Status::error(
            code,
            "layer %d: nothing was %s any sequence of a batch: indptr gives sequence %d rows %d up "
            "to %lld of %d; it must ascend from 0 on, to the number of rows at most. %u errors in "
            "all",
            record.layer, record.call == DeviceCall::Append ? "appended to" : "attended to for",
            record.sequence, record.head, token, record.channel, record.count);
      return Status::error(
          code,
          "layer %d: the engine's table or indptr of sequence %d cannot be meant: %lld tokens, "
          "or a page outside the pool. %u errors in all",
          record.layer, record.sequence, token, record.count);
    case ErrorCode::OutOfMemory:
      return Status::error(code,
                           "layer %d: no room for the pages of sequence slot %d in the exported "
                           "indices. %u errors in all",
                           record.layer, record.sequence, record.count);
    default:
      return Status::error(code, "layer %d: error in sequence slot %d at position %lld; %u in all",
                           record.layer, record.sequence, token, record.count);
  }
}

}  // namespace kvtilt::cuda
