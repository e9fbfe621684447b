// SPDX-License-Identifier: MIT
#include "format_list.hpp"

#include <kvtilt/io/format_name.hpp>
#include <kvtilt/plan/group_plan.hpp>

#include "fail.hpp"

#include <algorithm>
#include <array>
#include <string_view>

namespace llama {
namespace {

using kvtilt::Format;

void add(std::vector<Format>& formats, const Format& format) {
  if (std::find(formats.begin(), formats.end(), format) == formats.end()) formats.push_back(format);
}

/// Adds the formats of a width, each with the range rules that fit it.
void add_width(kvtilt::FormatChoices& choices, int bits, bool keys, bool values, Variants variants,
               const kvtilt::CacheShape& shape, int page_tokens) {
  if (variants == Variants::Default) {
    const auto all = kvtilt::presets::per_channel_keys(bits, bits);
    if (keys) add(choices.keys, all.key);
    if (values) add(choices.values, all.value);
    return;
  }
  const std::array widths{bits};
  const kvtilt::GroupOptions whole{kvtilt::max_group, true};
  const auto all = kvtilt::format_choices(shape, page_tokens, widths, widths, whole).value();
  const auto add_rules = [](std::vector<Format>& to, const std::vector<Format>& from) {
    for (Format format : from) {
      add(to, format);
      if (format.rule != kvtilt::RangeRule::MinMse) continue;
      format.rule = kvtilt::RangeRule::MinMax;
      add(to, format);
    }
  };
  if (keys) add_rules(choices.keys, all.keys);
  if (values) add_rules(choices.values, all.values);
}

}  // namespace

kvtilt::FormatChoices parse_formats(const std::vector<std::string>& entries, Variants variants,
                                    const kvtilt::CacheShape& shape, int page_tokens) {
  kvtilt::FormatChoices choices;
  for (const std::string& entry : entries) {
    const bool keys = !entry.starts_with('v');
    const bool values = !entry.starts_with('k');
    std::string_view name = entry;
    if (!keys || !values) name.remove_prefix(1);
    const bool width = name.size() == 1 && name[0] >= '1' && name[0] <= '8';
    if (width) {
      add_width(choices, name[0] - '0', keys, values, variants, shape, page_tokens);
      continue;
    }
    const auto format = kvtilt::parse_format(name);
    if (!format) fail("--formats: ", format.message());
    if (keys) add(choices.keys, *format);
    if (values) add(choices.values, *format);
  }
  if (choices.keys.empty()) fail("--formats leaves nothing to store keys in");
  if (choices.values.empty()) fail("--formats leaves nothing to store values in");
  return choices;
}

}  // namespace llama
