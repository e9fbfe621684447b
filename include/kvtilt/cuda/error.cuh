// SPDX-License-Identifier: MIT
/// Errors of the CUDA runtime as Status.
#pragma once

#include <kvtilt/core/status.hpp>

#include <cuda_runtime.h>

#include <utility>

namespace kvtilt::cuda {

/// An error of the runtime, whose own record of it is cleared: an engine that asks for its last error
/// must not see again what was returned to it. `what` names the failed step.
inline Status to_status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();
  const bool memory = error == cudaErrorMemoryAllocation;
  const bool invalid = error == cudaErrorInvalidValue || error == cudaErrorInvalidResourceHandle;
  return Status::error(memory    ? ErrorCode::OutOfMemory
                       : invalid ? ErrorCode::InvalidArgument
                                 : ErrorCode::Unsupported,
                       "%s: CUDA says %s (%s)", what, cudaGetErrorName(error),
                       cudaGetErrorString(error));
}

inline Result<bool> is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  KVTILT_RETURN_IF_ERROR(to_status(cudaStreamIsCapturing(stream, &status), "looking at a stream"));
  return status != cudaStreamCaptureStatusNone;
}

/// Fails in a capture. For calls that change host state or wait: graph replays do neither.
inline Status refuse_capture(cudaStream_t stream, const char* call) {
  Result<bool> capturing = is_capturing(stream);
  if (!capturing) return std::move(capturing).take_status();
  if (!*capturing) return {};
  return Status::error(ErrorCode::InvalidArgument,
                       "%s cannot be captured into a graph; only append, unpack, attention and a "
                       "batch's truncate with lengths that the host does not know can",
                       call);
}

}  // namespace kvtilt::cuda
