// SPDX-License-Identifier: MIT
/// Names out of files, as sentences may show them: a damaged or crafted file decides what they
/// hold, and a message has room for some hundred characters only.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace kvtilt {

/// Printable ASCII stays, any other byte becomes '?', and what is longer than `most` is cut.
inline std::string shown(std::string_view text, std::size_t most = 80) {
  std::string result(text.substr(0, most));
  for (char& c : result)
    if (c < ' ' || c > '~') c = '?';
  if (text.size() > most) result += "...";
  return result;
}

/// A path; of a long one the end, which says more than the beginning.
inline std::string shown_path(const std::filesystem::path& path) {
  constexpr std::size_t most = 200;
  std::string text = path.string();
  if (text.size() > most) text = "..." + text.substr(text.size() - most);
  return text;
}

}  // namespace kvtilt
