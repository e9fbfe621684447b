// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>

namespace llama {

/// The whole of a small text file (a text to evaluate, a tokenizer). Throws when unreadable.
std::string read_text_file(const std::filesystem::path& path);

}  // namespace llama
