// SPDX-License-Identifier: MIT
#include "pieces.hpp"

#include <algorithm>

namespace llama {
namespace {

constexpr std::string_view marker = "<|endoftext|>";

std::string_view strip(std::string_view text) {
  constexpr std::string_view white = " \t\n\v\f\r";
  const auto first = text.find_first_not_of(white);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(white) - first + 1);
}

}  // namespace

std::vector<std::vector<int>> cut_pieces(std::string_view text, const Tokenizer& tokenizer,
                                         int context) {
  std::vector<std::vector<int>> pieces;
  const auto begin_token = tokenizer.begin_token();
  const std::size_t room = static_cast<std::size_t>(context) - (begin_token ? 1 : 0);
  const auto add = [&](auto first, auto last) {
    std::vector<int> piece;
    if (begin_token) piece.push_back(*begin_token);
    piece.insert(piece.end(), first, last);
    if (piece.size() >= 2) pieces.push_back(std::move(piece));
  };
  if (room == 0) return pieces;

  if (text.find(marker) == std::string_view::npos) {
    const auto tokens = tokenizer.encode(strip(text));
    for (std::size_t i = 0; i < tokens.size(); i += room) {
      add(tokens.begin() + static_cast<std::ptrdiff_t>(i),
          tokens.begin() + static_cast<std::ptrdiff_t>(std::min(i + room, tokens.size())));
    }
    return pieces;
  }
  while (true) {
    const auto end = text.find(marker);
    const auto tokens = tokenizer.encode(strip(text.substr(0, end)));
    add(tokens.begin(),
        tokens.begin() + static_cast<std::ptrdiff_t>(std::min(room, tokens.size())));
    if (end == std::string_view::npos) return pieces;
    text.remove_prefix(end + marker.size());
  }
}

std::pair<std::string_view, std::string_view> split_text(std::string_view text, double share) {
  auto cut = static_cast<std::size_t>(share * static_cast<double>(text.size()));
  if (cut > 0 && text.find(marker) != std::string_view::npos) {
    cut = std::min(text.find(marker, cut), text.size());
  }
  const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; };
  while (cut < text.size() && continues(text[cut])) ++cut;
  return {text.substr(0, cut), text.substr(cut)};
}

void spread_predictions(std::vector<std::vector<int>>& pieces, long limit) {
  long predictions = 0;
  for (const auto& piece : pieces) predictions += static_cast<long>(piece.size()) - 1;
  const auto stride = static_cast<std::size_t>((predictions + limit - 1) / limit);
  std::vector<std::vector<int>> kept;
  for (std::size_t i = 0; i < pieces.size(); i += std::max<std::size_t>(stride, 1)) {
    kept.push_back(std::move(pieces[i]));
  }
  pieces = std::move(kept);
  limit_predictions(pieces, limit);
}

void limit_predictions(std::vector<std::vector<int>>& pieces, long limit) {
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const long predictions = static_cast<long>(pieces[i].size()) - 1;
    if (predictions >= limit) {
      pieces[i].resize(static_cast<std::size_t>(limit) + 1);
      pieces.resize(limit == 0 ? i : i + 1);
      return;
    }
    limit -= predictions;
  }
}

}  // namespace llama
