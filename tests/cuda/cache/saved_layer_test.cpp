// SPDX-License-Identifier: MIT
// Compares with KVCache::save() of a CPU cache with the same history.
#include <kvtilt/cuda/cache/saved_layer.hpp>
#include <kvtilt/cuda/cache/sequence_calls.hpp>

#include "support/caches.hpp"
#include "support/device_program.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace kvtilt::test {
namespace {

/// A saved sequence of one layer, at an odd multiple of 16 bytes, between guards.
class Image {
 public:
  Image(const EmulatedLayer& device, const std::vector<std::byte>& bytes)
      : header(read<SavedHeader>(bytes, 0)),
        layer(read<SavedLayer>(bytes, sizeof header)),
        places(header, layer,
               {device.layout(PageKind::Sinks), device.layout(PageKind::Sealed),
                device.layout(PageKind::Tail)}),
        memory_(bytes.size() + page_alignment, 0x77),
        size_(bytes.size()) {}

  std::byte* data() { return memory_.data() + 16; }
  void fill(const std::vector<std::byte>& bytes) {
    std::memcpy(data(), bytes.data(), bytes.size());
  }
  [[nodiscard]] const SavedPage* pages() {
    return reinterpret_cast<const SavedPage*>(data() + places.pages);
  }
  /// The blocks equal those of `bytes`, and nothing else was written.
  void expect_blocks(const std::vector<std::byte>& bytes) {
    const std::size_t first = places.blocks[static_cast<int>(PageKind::Sinks)];
    ASSERT_EQ(places.end, bytes.size());
    for (std::size_t i = 0; i < memory_.size(); ++i) {
      const bool within = i >= 16 + first && i < 16 + size_;
      ASSERT_EQ(memory_.data()[i], within ? bytes[i - 16] : std::byte{0x77})
          << "byte " << i << " of the image's memory; blocks from " << 16 + first << " to "
          << 16 + size_;
    }
    EXPECT_TRUE(memory_.guards_are_whole());
  }

  const SavedHeader header;
  const SavedLayer layer;
  const SavedPlaces places;

 private:
  template <class T>
  static T read(const std::vector<std::byte>& bytes, std::size_t at) {
    T record;
    std::memcpy(&record, bytes.data() + at, sizeof record);
    return record;
  }

  Block memory_;
  std::size_t size_;
};

std::vector<std::byte> saved_by_cpu(DeviceProgram& program, int sequence) {
  return saved(program.cpu(), program.id(sequence));
}

/// Checksum of the image's blocks.
std::uint64_t sum_of(Image& image) {
  return saved_sum({image.data(), image.places.end}, image.places.first_block(), image.places.end);
}

template <class Byte>
cuda::SavedLayerArguments<Byte> arguments_of(EmulatedLayer& device, int sequence, Image& image,
                                             cuda::SavedResult& result) {
  return {device.view(), sequence,     image.data(), image.header.length,
          image.layer,   image.places, &result};
}

cuda::SavedResult save(EmulatedLayer& device, int sequence, Image& image, int blocks) {
  cuda::SavedResult result{};
  const auto arguments = arguments_of<std::byte>(device, sequence, image, result);
  EXPECT_TRUE(
      emulate(blocks, cuda::saved_threads, cuda::saved_shared_bytes(arguments.layer),
              [&](EmulatedThreads& threads) { cuda::save_layer_body(threads, arguments); }));
  return result;
}

cuda::SavedResult load_tables(EmulatedLayer& device, int sequence, Image& image) {
  cuda::SavedResult result{};
  const auto arguments = arguments_of<const std::byte>(device, sequence, image, result);
  EXPECT_TRUE(emulate(
      2, 32, 0, [&](EmulatedThreads& threads) { cuda::load_tables_body(threads, arguments); }));
  return result;
}

cuda::SavedResult load(EmulatedLayer& device, int sequence, Image& image, int blocks) {
  cuda::SavedResult result{};
  const auto arguments = arguments_of<const std::byte>(device, sequence, image, result);
  EXPECT_TRUE(
      emulate(blocks, cuda::saved_threads, cuda::saved_shared_bytes(arguments.layer),
              [&](EmulatedThreads& threads) { cuda::load_layer_body(threads, arguments); }));
  return result;
}

void expect_done(const cuda::SavedResult& result, Image& image) {
  EXPECT_EQ(result.refusals, 0u);
  EXPECT_EQ(result.sum, sum_of(image));
}

void expect_refused(const cuda::SavedResult& result) {
  EXPECT_EQ(result.refusals, 1u);
  EXPECT_EQ(result.sum, 0u);
}

EmulatedLayer another_layer(const ProgramSetup& setup, DeviceProgram& program, int pages_each) {
  return {setup.shape,
          {*resolve_recipe(setup.recipe, setup.shape, setup.page_tokens)},
          program.device().placement(),
          2,
          pages_each};
}

/// Saves a sequence and loads it into another cache.
void check_sequence(const ProgramSetup& setup, DeviceProgram& program, int sequence) {
  const std::vector<std::byte> bytes = saved_by_cpu(program, sequence);
  Image image(program.device(), bytes);
  const int all = cuda::saved_blocks(program.device().view(), image.places);
  for (const int blocks : {all, 3}) {
    Image written(program.device(), bytes);
    expect_done(save(program.device(), sequence, written, blocks), written);
    written.expect_blocks(bytes);
    if (testing::Test::HasFailure()) return;
  }

  image.fill(bytes);
  const int pages_each = image.layer.pages + 2;
  for (const int blocks : {all, 3}) {
    EmulatedLayer loaded = another_layer(setup, program, pages_each);
    loaded.state(1).ring_head = 1;  // must be overwritten
    loaded.state(1).shared_end = 1;
    EXPECT_EQ(load_tables(loaded, 1, image).refusals, 0u);
    const cuda::SequenceState& state = loaded.state(1);
    const cuda::SequenceState& from = program.device().state(sequence);
    EXPECT_EQ(state.tail_start, from.tail_start);
    EXPECT_EQ(state.first_page, 0);
    EXPECT_EQ(state.page_end, from.page_end - from.first_page);
    EXPECT_EQ(state.page_capacity, pages_each);
    EXPECT_EQ(state.ring_head, 0);
    EXPECT_EQ(state.shared_end, 0);
    expect_done(load(loaded, 1, image, blocks), image);
    loaded.expect_equals(1, *program.cpu().view(program.id(sequence), 0));
    if (testing::Test::HasFailure()) return;
  }
}

void truncate(DeviceProgram& program, int sequence, std::int64_t length) {
  ASSERT_TRUE(program.cpu().truncate(program.id(sequence), length).ok());
  cuda::truncate(cuda::SingleThread{}, program.device().placement(),
                 program.device().state(sequence), program.device().view().table(sequence), length);
}

void remove(DeviceProgram& program, int sequence, std::int64_t from, std::int64_t to) {
  ASSERT_TRUE(program.cpu().remove(program.id(sequence), from, to).ok());
  const cuda::LayerView& layer = program.device().view();
  ASSERT_TRUE(emulate(1, 32, 128, [&](EmulatedThreads& threads) {
    cuda::remove_body(threads, {&layer, 1}, sequence, from, to);
  }));
  program.expect_equal(sequence);
}

TEST(SavedLayers, AreThoseOfTheCpu) {
  const Format half{};
  for (const Recipe& recipe : {Recipe{key_format(4), value_format(2)}, Recipe{},
                               Recipe{key_format(3, Granularity::PerToken, 32), half},
                               Recipe{half, value_format(7, Granularity::PerChannel)}}) {
    const ProgramSetup setup{.shape = {2, 80, 64}, .recipe = recipe};
    DeviceProgram program(setup, 31);
    // An empty sequence, sinks alone, a few pages; the ring wraps around.
    check_sequence(setup, program, 0);
    program.append({0}, {3}, emulate_append);
    check_sequence(setup, program, 0);
    for (const int tokens : {150, 90, 70}) program.append({0}, {tokens}, emulate_append);
    EXPECT_NE(program.device().state(0).ring_head, 0);
    check_sequence(setup, program, 0);
    ASSERT_FALSE(testing::Test::HasFailure())
        << recipe.key.bits << " and " << recipe.value.bits << " bits";
  }
}

TEST(SavedLayers, Latents) {
  for (const Format& format : {key_format(8), Format{}}) {
    const ProgramSetup setup{.shape = LayerShape::latent(64, 32), .recipe = {format, in_keys}};
    DeviceProgram program(setup, 36);
    for (const int tokens : {3, 150, 90}) program.append({0}, {tokens}, emulate_append);
    check_sequence(setup, program, 0);
  }
}

TEST(SavedLayers, ShortPagesAndHoles) {
  const ProgramSetup setup{.shape = {1, 64, 64},
                           .recipe = {key_format(5), value_format(4)},
                           .page_tokens = 32,
                           .recent_tokens = 40};
  DeviceProgram program(setup, 32);
  program.append({1}, {250}, emulate_append);
  remove(program, 1, 36, 100);
  check_sequence(setup, program, 1);
  truncate(program, 1, 120);
  check_sequence(setup, program, 1);
  program.append({1}, {100}, emulate_append);
  check_sequence(setup, program, 1);
  truncate(program, 1, 2);
  check_sequence(setup, program, 1);
}

TEST(SavedLayers, Windows) {
  for (const bool keep_sinks : {false, true}) {
    ProgramSetup setup{.shape = {2, 32, 48, 70},
                       .recipe = {key_format(8), value_format(6)},
                       .page_tokens = 32,
                       .recent_tokens = 20,
                       .capacity = 10000};
    setup.shape.keep_sinks = keep_sinks;
    DeviceProgram program(setup, 33);
    for (const int tokens : {200, 33, 180}) program.append({0}, {tokens}, emulate_append);
    EXPECT_GT(program.device().state(0).first_kept, 0);
    check_sequence(setup, program, 0);
  }
}

TEST(SavedLayers, NoSinksAndLargePages) {
  for (const int page_tokens : {64, 128}) {
    const ProgramSetup setup{.shape = {1, 192, 128},
                             .recipe = {key_format(2), value_format(1)},
                             .page_tokens = page_tokens,
                             .sink_tokens = 0};
    DeviceProgram program(setup, 34);
    check_sequence(setup, program, 0);
    program.append({0}, {400}, emulate_append);
    check_sequence(setup, program, 0);
  }
}

TEST(SavedLayersHostile, AnotherSequenceIsLeftAlone) {
  const ProgramSetup setup{.shape = {1, 64, 64}, .recipe = {key_format(4), value_format(4)}};
  DeviceProgram program(setup, 35);
  program.append({0}, {300}, emulate_append);
  program.append({1}, {140}, emulate_append);
  const std::vector<std::byte> bytes = saved_by_cpu(program, 0);
  Image image(program.device(), bytes);
  const auto expect_untouched = [&] {
    for (std::size_t i = 0; i < bytes.size(); ++i)
      ASSERT_EQ(image.data()[i], std::byte{0x77}) << "byte " << i;
  };
  expect_refused(save(program.device(), 1, image, 7));  // a sequence with fewer pages
  expect_untouched();
  truncate(program, 0, 299);  // still as many pages and tail blocks
  expect_refused(save(program.device(), 0, image, 7));
  expect_untouched();

  image.fill(bytes);
  expect_refused(load(program.device(), 1, image, 7));
  program.expect_equal(1);
}

TEST(SavedLayersHostile, TablesNeedAPageEach) {
  const ProgramSetup setup{.shape = {1, 64, 64}, .recipe = {key_format(4), value_format(4)}};
  DeviceProgram program(setup, 36);
  program.append({0}, {300}, emulate_append);
  const std::vector<std::byte> bytes = saved_by_cpu(program, 0);
  Image image(program.device(), bytes);
  image.fill(bytes);
  ASSERT_EQ(image.layer.pages, 3);
  for (const int pages : {2, 3}) {
    EmulatedLayer loaded = another_layer(setup, program, pages);
    const bool fits = pages == 3;
    EXPECT_EQ(load_tables(loaded, 0, image).refusals, fits ? 0u : 1u);
    EXPECT_EQ(loaded.state(0).length, fits ? 300 : 0);
    EXPECT_EQ(loaded.state(0).page_end, fits ? 3 : 0);
    EXPECT_EQ(loaded.view().table(0)[0].tokens, fits ? 64 : -1);
    EXPECT_EQ(loaded.view().table(0)[1].page, 2);
  }
}

}  // namespace
}  // namespace kvtilt::test
