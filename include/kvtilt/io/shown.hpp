// SPDX-License-Identifier: MIT
/// Makes names from files safe and short enough for error messages: a damaged or crafted file
/// decides what they hold, and a message has room for only some hundred characters.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace kvtilt {

/// The text with every byte that is not printable ASCII replaced by '?', cut after `most`
/// characters.
inline std::string shown(std::string_view text, std::size_t most = 80) {
  std::string result(text.substr(0, most));
  for (char& c : result)
    if (c < ' ' || c > '~') c = '?';
  if (text.size() > most) result += "...";
  return result;
}

/// The path as a message shows it; of a long path only the end, which says more than the beginning.
inline std::string shown_path(const std::filesystem::path& path) {
  constexpr std::size_t most = 200;
  std::string text = path.string();
  if (text.size() > most) text = "..." + text.substr(text.size() - most);
  return text;
}

}  // namespace kvtilt
