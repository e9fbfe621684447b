// SPDX-License-Identifier: MIT
/// Writes a file whole or not at all.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/io/shown.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace kvtilt {

namespace detail {

/// Writes all bytes, in as many calls as it takes. Returns 0, or the system's error number.
inline int write_bytes(int descriptor, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ::ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return written < 0 ? errno : ENOSPC;
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return 0;
}

inline Status write_error(const std::filesystem::path& path, const char* what, int reason) {
  return Status::error(ErrorCode::FileAccess, "%s: %s: %s", shown_path(path).c_str(), what,
                       std::strerror(reason));
}

/// Creates and opens a file next to `path` that did not exist before, and stores its name in
/// `name`.
inline Result<int> open_temporary(const std::filesystem::path& path, std::string& name) {
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode))
    return Status::error(ErrorCode::FileAccess, "%s: is not a regular file",
                         shown_path(path).c_str());
  int descriptor = -1;
  for (int i = 0; i < 1000; ++i) {
    name = path.string() + ".tmp" + std::to_string(i);
    descriptor = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor >= 0 || errno != EEXIST) break;
  }
  if (descriptor < 0) return write_error(path, "cannot be written", errno);
  return descriptor;
}

}  // namespace detail

/// Replaces the file `path` by the parts, one after the other. They go to a temporary file next to
/// it, which takes its place when it is complete and on disk. On failure (FileAccess, with the
/// system's reason) the temporary file is removed and `path` is unchanged. `path` must be absent or
/// a regular file.
inline Status write_file(const std::filesystem::path& path,
                         std::span<const std::span<const std::byte>> parts) {
  std::string temporary;
  Result<int> descriptor = detail::open_temporary(path, temporary);
  if (!descriptor) return std::move(descriptor).take_status();
  int reason = 0;
  for (const std::span<const std::byte> part : parts)
    if (reason == 0) reason = detail::write_bytes(*descriptor, part);
  if (reason == 0 && ::fsync(*descriptor) != 0) reason = errno;
  if (::close(*descriptor) != 0 && reason == 0) reason = errno;
  if (reason == 0 && std::rename(temporary.c_str(), path.c_str()) != 0) reason = errno;
  if (reason == 0) return {};
  ::unlink(temporary.c_str());
  return detail::write_error(path, "could not be written whole", reason);
}

/// Fails as write_file would if it could not create its temporary file: a check to make before a
/// long computation. Leaves `path` as it is.
inline Status check_writable(const std::filesystem::path& path) {
  std::string temporary;
  Result<int> descriptor = detail::open_temporary(path, temporary);
  if (!descriptor) return std::move(descriptor).take_status();
  ::close(*descriptor);
  ::unlink(temporary.c_str());
  return {};
}

inline Status write_file(const std::filesystem::path& path, std::string_view text) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(text.data(), text.size()));
  return write_file(path, std::span(&bytes, 1));
}

}  // namespace kvtilt
