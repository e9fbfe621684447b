// SPDX-License-Identifier: MIT
#include <kvtilt/io/write_file.hpp>

#include "support/temporary_folder.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <span>
#include <string>
#include <vector>

namespace kvtilt {
namespace {

using test::TemporaryFolder;
using testing::AllOf;
using testing::HasSubstr;

std::ptrdiff_t files_in(const TemporaryFolder& folder) {
  return std::distance(std::filesystem::directory_iterator(folder.path()), {});
}

TEST(WriteFile, WritesThePartsOneAfterTheOther) {
  const TemporaryFolder folder;
  const std::string a = "one ";
  const std::string b = std::string(100000, 'x') + '\0';
  const std::vector<std::span<const std::byte>> parts = {
      std::as_bytes(std::span(a)), {}, std::as_bytes(std::span(b))};
  const Status status = write_file(folder.path() / "file", parts);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(folder.read("file"), a + b);
  EXPECT_EQ(files_in(folder), 1);
}

TEST(WriteFile, ReplacesAFileAndKeepsWhoeverReadsIt) {
  const TemporaryFolder folder;
  folder.write("file", "old and longer");
  std::filesystem::create_hard_link(folder.path() / "file", folder.path() / "kept");
  ASSERT_TRUE(write_file(folder.path() / "file", "new").ok());
  EXPECT_EQ(folder.read("file"), "new");
  EXPECT_EQ(folder.read("kept"), "old and longer");
}

TEST(WriteFile, LeavesTemporaryFilesOfOthersAlone) {
  const TemporaryFolder folder;
  folder.write("file.tmp0", "of somebody else");
  ASSERT_TRUE(write_file(folder.path() / "file", "text").ok());
  EXPECT_EQ(folder.read("file"), "text");
  EXPECT_EQ(folder.read("file.tmp0"), "of somebody else");
  EXPECT_EQ(files_in(folder), 2);
}

TEST(WriteFileHostile, NamesWhatCannotBeWritten) {
  const TemporaryFolder folder;
  const Status nowhere = write_file(folder.path() / "absent" / "file", "text");
  EXPECT_EQ(nowhere.code(), ErrorCode::FileAccess);
  EXPECT_THAT(std::string(nowhere.message()),
              AllOf(HasSubstr("absent/file: cannot be written"), HasSubstr("No such file")));
  EXPECT_THAT(std::string(write_file(folder.path(), "text").message()),
              HasSubstr("is not a regular file"));
  EXPECT_THAT(std::string(write_file("/dev/null", "text").message()),
              HasSubstr("is not a regular file"));
}

TEST(WriteFile, TellsBeforehandWhetherAFileCanBeWritten) {
  const TemporaryFolder folder;
  folder.write("file", "old");
  EXPECT_TRUE(check_writable(folder.path() / "file").ok());
  EXPECT_TRUE(check_writable(folder.path() / "new").ok());
  EXPECT_EQ(folder.read("file"), "old");
  EXPECT_EQ(files_in(folder), 1);
  for (const auto& path : {folder.path() / "absent" / "file", folder.path()}) {
    const Status status = check_writable(path);
    EXPECT_EQ(status.code(), ErrorCode::FileAccess);
    EXPECT_EQ(status.message(), write_file(path, "text").message());
  }
}

// A limit on file sizes stands for a full disk.
TEST(WriteFileHostile, AFullDiskLeavesWhatWasThere) {
  const TemporaryFolder folder;
  folder.write("file", "old");
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 1000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status status = write_file(folder.path() / "file", std::string(5000, 'x'));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(status.code(), ErrorCode::FileAccess);
  EXPECT_THAT(std::string(status.message()), HasSubstr("could not be written whole: File too"));
  EXPECT_EQ(folder.read("file"), "old");
  EXPECT_EQ(files_in(folder), 1);
}

}  // namespace
}  // namespace kvtilt
