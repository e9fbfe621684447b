// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>

namespace llama {

/// Reads a whole text file (a text to evaluate, a tokenizer). Throws if it is unreadable.
std::string read_text_file(const std::filesystem::path& path);

}  // namespace llama
