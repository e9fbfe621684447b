// SPDX-License-Identifier: MIT
/// A whole file, mapped read-only.
#pragma once

#include <kvtilt/core/status.hpp>
#include <kvtilt/io/shown.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <span>
#include <string_view>
#include <utility>

namespace kvtilt {

/// Owns the mapping. bytes() stay in place when the object is moved, and are valid until it is
/// destroyed. The system reads pages from disk when they are touched and may drop them, so a file
/// may exceed the memory. As with every mapping, a read beyond the new end of a file that is
/// shortened meanwhile ends the process (SIGBUS).
class MappedFile {
 public:
  /// Fails with FileAccess, naming the file and the system's reason, if the file is absent, may not
  /// be read, is not a regular file or cannot be mapped.
  static Result<MappedFile> open(const std::filesystem::path& path) {
    // Without O_NONBLOCK, opening a pipe would wait for a writer.
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return error(path, "cannot be opened", errno);
    Result<MappedFile> file = map(path, descriptor);
    ::close(descriptor);
    return file;
  }

  ~MappedFile() { unmap(); }
  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    if (this != &other) {
      unmap();
      bytes_ = std::exchange(other.bytes_, {});
    }
    return *this;
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
  [[nodiscard]] std::string_view text() const {
    return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()};
  }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}

  static Status error(const std::filesystem::path& path, const char* what, int reason) {
    return Status::error(ErrorCode::FileAccess, "%s: %s: %s", shown_path(path).c_str(), what,
                         std::strerror(reason));
  }

  static Result<MappedFile> map(const std::filesystem::path& path, int descriptor) {
    struct stat info {};
    if (::fstat(descriptor, &info) != 0) return error(path, "cannot be examined", errno);
    if (!S_ISREG(info.st_mode))
      return Status::error(ErrorCode::FileAccess, "%s: is not a regular file",
                           shown_path(path).c_str());
    const std::size_t size = static_cast<std::size_t>(info.st_size);
    if (size == 0) return MappedFile({});  // mmap refuses empty files
    void* const data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (data == MAP_FAILED) return error(path, "cannot be mapped", errno);
    return MappedFile({static_cast<const std::byte*>(data), size});
  }

  void unmap() {
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }

  std::span<const std::byte> bytes_;
};

}  // namespace kvtilt
