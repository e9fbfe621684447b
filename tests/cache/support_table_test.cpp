// SPDX-License-Identifier: MIT
/// The table of supported formats in README.md equals what supports() says.
#include <kvtilt/cache/options.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace kvtilt {
namespace {

constexpr std::string_view begin_mark = "<!-- support table: written by cache/support_table -->\n";
constexpr std::string_view end_mark = "<!-- end of support table -->\n";

/// Writes "32, 64, 128"; four or more evenly spaced numbers become "16, 32, ..., 128" or "1-8".
std::string to_text(const std::vector<int>& numbers) {
  const std::size_t count = numbers.size();
  bool even = count >= 4;
  for (std::size_t i = 2; i < count; ++i)
    even = even && numbers[i] - numbers[i - 1] == numbers[1] - numbers[0];
  if (even && numbers[1] == numbers[0] + 1)
    return std::to_string(numbers[0]) + "-" + std::to_string(numbers.back());
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    if (even && i == 2) {
      text += ", ...";
      i = count - 1;
    }
    text += (i == 0 ? "" : ", ") + std::to_string(numbers[i]);
  }
  return text;
}

/// A format for keys or values, with the other tensor in 16 bits.
struct Probe {
  bool keys;
  int bits;
  Granularity granularity;

  [[nodiscard]] bool accepts(int dim, int group, int page) const {
    const Format format{bits, granularity, group, default_rule(bits)};
    return keys ? supports({1, dim, 64, 0}, {format, {}}, page).ok()
                : supports({1, 64, dim, 0}, {{}, format}, page).ok();
  }

  /// Head dimensions that accept the default group with every page size.
  [[nodiscard]] std::vector<int> dims() const {
    std::vector<int> found;
    for (int dim = 0; dim <= 1024; ++dim)
      if (accepts(dim, 0, 32) && accepts(dim, 0, 64) && accepts(dim, 0, 128)) found.push_back(dim);
    return found;
  }
  /// Group sizes that all of some representative head dimensions accept.
  [[nodiscard]] std::vector<int> groups(int page) const {
    std::vector<int> found;
    for (int group = 1; group <= 640; ++group) {
      const auto takes = [&](int dim) { return accepts(dim, group, page); };
      const int dims[] = {8, 16, 72, 96, 128, 136, 192, 576};
      if (std::all_of(std::begin(dims), std::end(dims), takes)) found.push_back(group);
    }
    return found;
  }
  /// The widest head that can be a single group if all narrower ones can be too; else 0.
  [[nodiscard]] int whole_head() const {
    int widest = 0;
    for (const int dim : dims()) {
      if (!accepts(dim, dim, 32)) break;
      widest = dim;
    }
    return widest;
  }

  [[nodiscard]] std::string group_text() const {
    const std::string in_32 = to_text(groups(32));
    const std::string in_64 = to_text(groups(64));
    const std::string in_128 = to_text(groups(128));
    if (in_32.empty() && in_64.empty() && in_128.empty()) return "-";
    if (in_32 != in_64 || in_64 != in_128)
      return in_32 + " of a 32-token page; " + in_64 + " of 64; " + in_128 + " of 128";
    return in_32 + (whole_head() > 0 ? ", or a head of up to " + std::to_string(whole_head()) : "");
  }
  [[nodiscard]] std::string row() const {
    const std::string groups = group_text();
    const char* axis = groups == "-"                            ? "-"
                       : granularity == Granularity::PerChannel ? "channel, along tokens"
                                                                : "token, along channels";
    return std::string(" | ") + axis + " | " + groups + " | " + to_text(dims()) + " | ";
  }
};

/// A row of the table: the widths for which all its other columns are equal.
struct Line {
  std::string row;
  std::vector<int> key_bits;
  std::vector<int> value_bits;
};

std::string support_table() {
  std::vector<Line> lines;
  for (const Granularity granularity : {Granularity::PerChannel, Granularity::PerToken})
    for (const bool keys : {true, false})
      for (int bits = 0; bits <= 17; ++bits) {
        const Probe probe{keys, bits, granularity};
        if (probe.dims().empty()) continue;
        const std::string row = probe.row();
        auto line = std::find_if(lines.begin(), lines.end(),
                                 [&](const Line& other) { return other.row == row; });
        if (line == lines.end()) line = lines.insert(lines.end(), {row, {}, {}});
        std::vector<int>& widths = keys ? line->key_bits : line->value_bits;
        if (std::find(widths.begin(), widths.end(), bits) == widths.end()) widths.push_back(bits);
      }
  const auto first_width = [](const Line& line) {
    return (line.key_bits.empty() ? line.value_bits : line.key_bits).front();
  };
  std::stable_sort(lines.begin(), lines.end(),
                   [&](const Line& a, const Line& b) { return first_width(a) < first_width(b); });
  std::string isas;
  for (const Isa isa : all_isas) isas += (isas.empty() ? "" : ", ") + std::string(to_string(isa));

  std::string table =
      "| tensor | bits | one scale and minimum per | group | head dimension | instruction sets |\n"
      "|---|---|---|---|---|---|\n";
  const auto add = [&](const char* tensor, const std::vector<int>& bits, const std::string& row) {
    if (!bits.empty())
      table += std::string("| ") + tensor + " | " + to_text(bits) + row + isas + " |\n";
  };
  for (const Line& line : lines)
    if (line.key_bits == line.value_bits) {
      add("keys, values", line.key_bits, line.row);
    } else {
      add("keys", line.key_bits, line.row);
      add("values", line.value_bits, line.row);
    }
  return table;
}

TEST(SupportTable, InReadmeIsWhatSupportsSays) {
  std::ifstream file(KVTILT_README);
  ASSERT_TRUE(file) << KVTILT_README;
  std::stringstream text;
  text << file.rdbuf();
  const std::string readme = text.str();
  const std::size_t begin = readme.find(begin_mark);
  const std::size_t end = readme.find(end_mark);
  ASSERT_TRUE(begin != std::string::npos && end != std::string::npos && begin < end)
      << "README.md lacks the lines\n"
      << begin_mark << end_mark;
  const std::size_t start = begin + begin_mark.size();
  EXPECT_EQ(readme.substr(start, end - start), support_table())
      << "put this between the marks in README.md:\n"
      << support_table();
}

TEST(SupportTable, NumbersAreShortenedOnlyWhereNothingIsLost) {
  EXPECT_EQ(to_text({}), "");
  EXPECT_EQ(to_text({16}), "16");
  EXPECT_EQ(to_text({1, 2, 3}), "1, 2, 3");
  EXPECT_EQ(to_text({1, 2, 3, 4}), "1-4");
  EXPECT_EQ(to_text({16, 32, 48, 64}), "16, 32, ..., 64");
  EXPECT_EQ(to_text({16, 32, 48, 80}), "16, 32, 48, 80");
  EXPECT_EQ(to_text({1, 2, 3, 4, 6}), "1, 2, 3, 4, 6");
}

}  // namespace
}  // namespace kvtilt
