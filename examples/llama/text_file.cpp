// SPDX-License-Identifier: MIT
#include "text_file.hpp"

#include <kvtilt/io/mapped_file.hpp>

namespace llama {

std::string read_text_file(const std::filesystem::path& path) {
  return std::string(kvtilt::MappedFile::open(path).value().text());
}

}  // namespace llama
