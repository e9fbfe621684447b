// SPDX-License-Identifier: MIT
/// Errors as values: a code an engine can branch on and a sentence a person can act on.
#pragma once

#include <kvtilt/core/config.hpp>

#include <cstddef>
#include <cstdio>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#if defined(__cpp_exceptions)
#include <stdexcept>
#endif

namespace kvtilt {

enum class ErrorCode : unsigned char {
  Ok,
  InvalidArgument,  ///< a shape, option, name or handle that is not valid
  InvalidValue,     ///< NaN, infinity or a magnitude the format cannot hold
  OutOfCapacity,    ///< more tokens than were reserved
  OutOfMemory,      ///< the allocator failed, or the configured limit is reached
  Unsupported,      ///< valid, but not in this build or version; the message says what is supported
  Corrupt,          ///< foreign or damaged bytes
  FileAccess,       ///< a file cannot be opened, mapped or written; the message has the reason
};

/// Success, or an error code with a message. Moving is free; success never allocates.
class [[nodiscard]] Status {
 public:
  Status() = default;

  /// Formats the message like printf, cut off at 511 bytes. Without memory for it, keeps the code
  /// alone.
  [[gnu::format(printf, 2, 3)]] static Status error(ErrorCode code, const char* format, ...);

  [[nodiscard]] bool ok() const { return code_ == ErrorCode::Ok; }
  [[nodiscard]] ErrorCode code() const { return code_; }
  /// Empty on success. Lives as long as this object.
  [[nodiscard]] std::string_view message() const {
    if (ok()) return "";
    return message_ ? std::string_view(message_.get()) : "out of memory while describing an error";
  }

 private:
  ErrorCode code_ = ErrorCode::Ok;
  std::unique_ptr<char[]> message_;
};

inline Status Status::error(ErrorCode code, const char* format, ...) {
  Status status;
  status.code_ = code;
  constexpr std::size_t capacity = 512;
  status.message_.reset(new (std::nothrow) char[capacity]);
  if (status.message_) {
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    std::vsnprintf(status.message_.get(), capacity, format, arguments);
    __builtin_va_end(arguments);
  }
  return status;
}

/// A value, or the Status that explains why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT: a value is a successful result
  Result(Status status) : status_(std::move(status)) {}  // NOLINT: an error is a failed result

  [[nodiscard]] bool ok() const { return value_.has_value(); }
  explicit operator bool() const { return ok(); }
  [[nodiscard]] const Status& status() const { return status_; }
  [[nodiscard]] Status take_status() && { return std::move(status_); }
  [[nodiscard]] ErrorCode code() const { return status_.code(); }
  [[nodiscard]] std::string_view message() const { return status_.message(); }

  /// Undefined unless ok().
  [[nodiscard]] T& operator*() & { return *value_; }
  [[nodiscard]] const T& operator*() const& { return *value_; }
  [[nodiscard]] T&& operator*() && { return *std::move(value_); }
  [[nodiscard]] T* operator->() { return &*value_; }
  [[nodiscard]] const T* operator->() const { return &*value_; }

#if defined(__cpp_exceptions)
  /// Throws std::runtime_error with the message. Absent where exceptions are disabled.
  [[nodiscard]] T& value() & { return check(), *value_; }
  [[nodiscard]] const T& value() const& { return check(), *value_; }
  /// Returns by value, so that `for (x : list().value())` does not iterate over a dead temporary.
  [[nodiscard]] T value() && { return check(), *std::move(value_); }

 private:
  void check() const {
    if (!ok()) throw std::runtime_error(std::string(message()));
  }
#endif

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace kvtilt

/// Returns from the enclosing function if a Status expression is an error. (The cast moves: nvcc
/// does not move implicitly into a Result, and compilers that do would warn about std::move.)
#define KVTILT_RETURN_IF_ERROR(expression)                                    \
  do {                                                                        \
    if (::kvtilt::Status kvtilt_status_ = (expression); !kvtilt_status_.ok()) \
      return static_cast<::kvtilt::Status&&>(kvtilt_status_);                 \
  } while (false)
