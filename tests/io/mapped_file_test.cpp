// SPDX-License-Identifier: MIT
#include <kvtilt/io/mapped_file.hpp>

#include "support/temporary_folder.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <string>
#include <utility>

namespace kvtilt {
namespace {

using test::TemporaryFolder;
using testing::AllOf;
using testing::HasSubstr;

TEST(MappedFile, HoldsTheBytesOfTheFile) {
  const TemporaryFolder folder;
  const std::string bytes = std::string("a\0b", 3) + std::string(10000, 'x');
  const auto file = MappedFile::open(folder.write("file", bytes));
  ASSERT_TRUE(file.ok()) << file.message();
  EXPECT_EQ(file->text(), bytes);
  EXPECT_EQ(file->bytes().size(), bytes.size());
}

TEST(MappedFile, MayBeEmpty) {
  const TemporaryFolder folder;
  const auto file = MappedFile::open(folder.write("file", ""));
  ASSERT_TRUE(file.ok()) << file.message();
  EXPECT_TRUE(file->bytes().empty());
}

TEST(MappedFile, MovesWithoutMovingItsBytes) {
  const TemporaryFolder folder;
  auto a = MappedFile::open(folder.write("a", "first"));
  auto b = MappedFile::open(folder.write("b", "second"));
  ASSERT_TRUE(a.ok() && b.ok());
  const std::byte* const bytes = b->bytes().data();
  MappedFile moved = *std::move(b);
  EXPECT_EQ(moved.bytes().data(), bytes);
  EXPECT_TRUE(b->bytes().empty());
  *a = std::move(moved);
  EXPECT_EQ(a->text(), "second");
  *a = std::move(*a);
  EXPECT_EQ(a->text(), "second");
}

TEST(MappedFile, OutlivesTheNameOfTheFile) {
  const TemporaryFolder folder;
  const auto path = folder.write("file", "text");
  const auto file = MappedFile::open(path);
  ASSERT_TRUE(file.ok());
  std::filesystem::remove(path);
  EXPECT_EQ(file->text(), "text");
}

TEST(MappedFileHostile, NamesWhatCannotBeOpened) {
  const TemporaryFolder folder;
  const auto absent = MappedFile::open(folder.path() / "absent");
  EXPECT_EQ(absent.code(), ErrorCode::FileAccess);
  EXPECT_THAT(std::string(absent.message()),
              AllOf(HasSubstr("/absent: cannot be opened"), HasSubstr("No such file")));
  const auto directory = MappedFile::open(folder.path());
  EXPECT_EQ(directory.code(), ErrorCode::FileAccess);
  EXPECT_THAT(std::string(directory.message()), HasSubstr("is not a regular file"));
  const auto pipe = folder.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(std::string(MappedFile::open(pipe).message()), HasSubstr("is not a regular file"));
}

}  // namespace
}  // namespace kvtilt
