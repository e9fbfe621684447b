// SPDX-License-Identifier: MIT
#include "llama2c_tokenizer.hpp"

#include <kvtilt/io/mapped_file.hpp>

#include "fail.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <queue>

namespace llama {
namespace {

constexpr int first_byte = 3;    // the piece for byte 0
constexpr int first_word = 259;  // the first piece that is text
constexpr std::int32_t longest_piece = 1 << 16;

/// Reads numbers off the front of a file and says which piece was cut short.
class PieceReader {
 public:
  PieceReader(const std::string& name, std::span<const std::byte> bytes)
      : name_(name), bytes_(bytes) {}

  std::span<const std::byte> take(std::size_t count) {
    if (count > bytes_.size()) {
      fail(name_, ": ends inside piece ", piece, " of ", pieces,
           " (is it this model's tokenizer?)");
    }
    const auto front = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return front;
  }

  template <class Number>
  Number number() {
    Number value{};
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }

  [[nodiscard]] std::size_t left() const { return bytes_.size(); }

  int piece = 0;
  int pieces = 0;

 private:
  const std::string& name_;
  std::span<const std::byte> bytes_;
};

// Bytes of UTF-8: the first of several, and those that follow it.
bool starts_several(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0xC0; }
bool continues(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

}  // namespace

Llama2cTokenizer::Llama2cTokenizer(const std::filesystem::path& file, const ModelConfig& config) {
  const kvtilt::MappedFile mapped = kvtilt::MappedFile::open(file).value();
  read(file.string(), mapped.bytes(), config.vocab);
  begin_token_ = config.begin_token.value_or(1);
}

void Llama2cTokenizer::read(const std::string& name, std::span<const std::byte> bytes, int vocab) {
  PieceReader reader(name, bytes);
  reader.pieces = vocab;
  if (vocab < first_word) {
    fail(name, ": a vocabulary of ", vocab, " has no room for the 256 byte pieces");
  }
  (void)reader.number<std::int32_t>();  // the longest piece: a hint for fixed buffers
  for (int id = 0; id < vocab; ++id) {
    reader.piece = id;
    const auto score = reader.number<float>();
    const auto length = reader.number<std::int32_t>();
    if (length < 0 || length > longest_piece) {
      fail(name, ": piece ", id, " has a length of ", length, " bytes");
    }
    if (!std::isfinite(score)) fail(name, ": piece ", id, " has no finite score");
    const auto text = reader.take(static_cast<std::size_t>(length));
    pieces_.push_back({{reinterpret_cast<const char*>(text.data()), text.size()}, score});
    // Control and byte pieces are spelled like "<s>" and "<0x0A>"; the same characters in a text
    // are ordinary letters, so these pieces are left out.
    if (id >= first_word) ids_.emplace(pieces_.back().text, id);
  }
  if (reader.left() != 0) {
    fail(name, ": ", reader.left(), " bytes follow the last of ", vocab,
         " pieces (is it this model's tokenizer?)");
  }
}

std::optional<int> Llama2cTokenizer::find(const std::string& text) const {
  const auto found = ids_.find(text);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

/// One token per character that is a piece, else one per byte.
std::vector<int> Llama2cTokenizer::split(std::string_view text) const {
  std::vector<int> tokens;
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = begin + 1;
    const std::size_t longest = starts_several(text[begin]) ? begin + 4 : end;
    while (end < std::min(text.size(), longest) && continues(text[end])) ++end;
    const auto character = text.substr(begin, end - begin);
    if (const auto id = find(std::string(character))) {
      tokens.push_back(*id);
    } else {
      for (const char byte : character) {
        tokens.push_back(first_byte + static_cast<unsigned char>(byte));
      }
    }
    begin = end;
  }
  return tokens;
}

std::vector<int> Llama2cTokenizer::encode(std::string_view text) const {
  if (text.empty()) return {};
  std::vector<int> tokens = split(" " + std::string(text));
  // `tokens` is a linked list. The queue holds every mergeable pair, the best score first and,
  // among equal scores, the leftmost: the pair that llama2.c finds by scanning the whole text.
  struct Merge {
    float score;
    int left, right;              // places in `tokens`
    int left_token, right_token;  // the tokens then: outdated pairs are skipped
    int merged;
    bool operator<(const Merge& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };
  const int count = static_cast<int>(tokens.size());
  std::vector<int> next(tokens.size());
  std::vector<int> previous(tokens.size());
  for (int i = 0; i < count; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;
  }
  std::priority_queue<Merge> merges;
  const auto offer = [&](int left, int right) {
    if (left < 0 || right >= count) return;
    const auto merged = find(pieces_[tokens[left]].text + pieces_[tokens[right]].text);
    if (!merged) return;
    merges.push({pieces_[*merged].score, left, right, tokens[left], tokens[right], *merged});
  };
  for (int i = 0; i + 1 < count; ++i) offer(i, i + 1);
  while (!merges.empty()) {
    const Merge best = merges.top();
    merges.pop();
    if (tokens[best.left] != best.left_token || tokens[best.right] != best.right_token ||
        next[best.left] != best.right) {
      continue;
    }
    tokens[best.left] = best.merged;
    tokens[best.right] = -1;
    next[best.left] = next[best.right];
    if (next[best.left] < count) previous[next[best.left]] = best.left;
    offer(previous[best.left], best.left);
    offer(best.left, next[best.left]);
  }
  std::erase(tokens, -1);
  return tokens;
}

std::string Llama2cTokenizer::decode(int previous, int token) const {
  if (token < first_byte || token >= static_cast<int>(pieces_.size())) return {};
  if (token < first_word) return std::string(1, static_cast<char>(token - first_byte));
  const std::string& text = pieces_[static_cast<std::size_t>(token)].text;
  return previous == begin_token_ && text.starts_with(' ') ? text.substr(1) : text;
}

}  // namespace llama
