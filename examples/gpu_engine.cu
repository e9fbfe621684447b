// SPDX-License-Identifier: MIT
// Continuous batching on a GPU: prompts are prefilled in chunks while other sequences decode in one
// captured graph. Each decoding sequence has up to most_drafts draft tokens, some of which are
// rejected; one request shares the pages of another's prompt, and a request for which no pages are
// free waits. The numbers are random: a real engine has its projections in place of `project`.

#include <kvtilt/kvtilt.cuh>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <list>
#include <new>
#include <random>
#include <span>
#include <utility>
#include <vector>

using namespace kvtilt;
namespace gpu = kvtilt::cuda;

namespace {

constexpr int layers = 3, heads = 4, kv_heads = 2, dim = 128;
constexpr int bucket = 4;       // slots of the graph; those without a sequence stay empty
constexpr int most_rows = 64;   // prompt tokens in a step
constexpr int most_drafts = 4;  // per sequence and step
constexpr int decoded_rows = bucket * (1 + most_drafts);  // at most, per replay
// Queries, keys and values of a token: [layers, heads + 2 * kv_heads, dim].
constexpr int row_heads = heads + 2 * kv_heads, row = layers * row_heads * dim;
constexpr int key_head(int head) { return heads + head / (heads / kv_heads); }

const CacheShape shape = CacheShape::uniform(layers, kv_heads, dim);
const Plan plan = {{{presets::k8v4}, {presets::k4v2}, {presets::k4v2}}};
/// Few pages, so that some requests wait; recent_tokens small, but enough for truncating drafts.
const gpu::CacheOptions options = {
    .recent_tokens = 32, .max_sequences = bucket, .token_capacity = 4 * 64};
/// Only the kernels that this plan needs: each takes the compiler a second or two.
using Kernels = gpu::AttendKernels<gpu::PageTraits<8, 4, dim>, gpu::PageTraits<4, 2, dim>>;

struct Request {
  int arrives, prompt, answer;  // step of arrival; lengths in tokens
  int shares = -1;              // index of a request whose whole prompt is its prefix
};
constexpr Request requests[] = {{0, 180, 26}, {0, 21, 30}, {6, 215, 10, 0},
                                {7, 140, 20}, {8, 24, 16}, {9, 33, 12}};

struct Sequence {
  SequenceId id;
  int request, prompt_left, answer_left;
  std::vector<F16> rows;  // [length, row], to check the answers against

  int length() const { return static_cast<int>(rows.size()) / row; }
  F16* at(int token, int layer, int head) {
    return rows.data() + token * row + (layer * row_heads + head) * dim;
  }
};

/// Mean squared distance of an answer from plain attention over the tokens up to the query's own.
double squared_error(Sequence& sequence, int token, int layer, int head, const F16* answer) {
  const F16* query = sequence.at(token, layer, head);
  double sum = 0, mixed[dim] = {}, error = 0;
  for (int other = 0; other <= token; ++other) {
    const F16* key = sequence.at(other, layer, key_head(head));
    const F16* value = sequence.at(other, layer, key_head(head) + kv_heads);
    double logit = 0;
    for (int c = 0; c < dim; ++c) logit += to_float(query[c]) * to_float(key[c]);
    const double weight = std::exp(logit / std::sqrt(dim));
    sum += weight;
    for (int c = 0; c < dim; ++c) mixed[c] += weight * to_float(value[c]);
  }
  for (int c = 0; c < dim; ++c) error += std::pow(to_float(answer[c]) - mixed[c] / sum, 2);
  return error / dim;
}

/// The rows (tokens) of one step: counts[i] rows of sequences[i], one sequence after the other.
struct Step {
  std::vector<Sequence*> sequences;
  std::vector<SequenceId> ids;
  std::vector<std::int32_t> counts, indptr = {0};

  int rows() const { return indptr.back(); }
  void add(Sequence& sequence, int count) {
    sequences.push_back(&sequence);
    ids.push_back(sequence.id);
    counts.push_back(count);
    indptr.push_back(rows() + count);
  }
};

/// Allocates device memory, which is never freed.
template <class T = std::byte>
std::span<T> device_array(std::size_t count) {
  T* memory = nullptr;
  if (cudaMalloc(&memory, count * sizeof(T)) != cudaSuccess) throw std::bad_alloc();
  return {memory, count};
}

/// The attention kernels for the layers of one recipe.
struct Attention {
  gpu::Attention decode;
  gpu::PrefillAttention prefill;

  static Attention over(int layer) {
    const LayerShape& of = shape.layers[layer];
    return {gpu::Attention::create<Kernels>(of, plan.recipes[layer]).value(),
            gpu::PrefillAttention::create<Kernels>(of, plan.recipes[layer]).value()};
  }
};

struct Engine {
  cudaStream_t stream;
  gpu::KVCache cache = gpu::KVCache::create(shape, plan, options, stream).value();
  Attention attention[2] = {Attention::over(0), Attention::over(1)};
  std::span<std::byte> workspace = device_array(workspace_bytes());  // one for all launches
  std::span<F16> inputs = device_array<F16>(most_rows * row);
  std::span<F16> outputs = device_array<F16>(layers * most_rows * heads * dim);
  std::span<std::int32_t> slots = device_array<std::int32_t>(bucket);
  std::span<std::int32_t> chunk_slots = device_array<std::int32_t>(bucket);
  std::span<std::int32_t> indptr = device_array<std::int32_t>(bucket + 1);
  std::span<std::int64_t> lengths = device_array<std::int64_t>(bucket);
  gpu::SequenceBatch batch;  // the decoding sequences, as stored in `slots`
  cudaGraphExec_t graph = nullptr;
  std::list<Sequence> running;
  std::mt19937 random{1};
  int tokens = 0, replays = 0, rejected = 0, waited = 0;
  std::size_t shared_bytes = 0;
  MemoryReport peak;
  double squares[layers] = {}, worst[layers] = {};  // squared errors summed; worst rms error

  explicit Engine(cudaStream_t stream_) : stream(stream_) {}
  ~Engine() { static_cast<void>(cudaGraphExecDestroy(graph)); }

  const Attention& attention_of(int layer) const { return attention[layer == 0 ? 0 : 1]; }
  std::size_t workspace_bytes() const {
    std::size_t most = 0;
    for (const Attention& of : attention)
      most = std::max({most, of.decode.workspace_bytes(), of.prefill.workspace_bytes()});
    return most;
  }
  TensorView input(int layer, int first_head, int count, int rows) const {
    return TensorView(inputs.data() + (layer * row_heads + first_head) * dim, rows, count, dim)
        .with_strides(row, dim);
  }
  TensorView queries(int layer, int rows) const { return input(layer, 0, heads, rows); }
  TensorView keys(int layer, int rows) const { return input(layer, heads, kv_heads, rows); }
  TensorView values(int layer, int rows) const {
    return input(layer, heads + kv_heads, kv_heads, rows);
  }
  MutableTensorView out(int layer, int rows) const {
    return {outputs.data() + layer * most_rows * heads * dim, rows, heads, dim};
  }
  template <class T>
  Status copy(T* to, const T* from, std::size_t count) const {
    return gpu::to_status(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDefault, stream),
                          "copying");
  }

  /// Queues append and attention of all layers. The rows are those that `indptr` states at replay.
  Status queue_decode(const gpu::SequenceBatch& of) {
    for (int layer = 0, rows = decoded_rows; layer < layers; ++layer) {
      KVTILT_RETURN_IF_ERROR(cache.append(of, layer, keys(layer, rows), values(layer, rows),
                                          indptr.data(), {}, stream));
      KVTILT_RETURN_IF_ERROR(attention_of(layer).decode.attend(
          *cache.view(layer), of.device, indptr.data(), queries(layer, rows), out(layer, rows),
          nullptr, {}, workspace, stream));
    }
    return {};
  }

  /// Captures the decode graph over an empty batch in `slots`, before any sequence exists. Later,
  /// cache.batch() rewrites `slots`, and so chooses the sequences that a replay serves.
  Status capture() {
    Result<gpu::SequenceBatch> nobody = cache.empty_batch(slots, stream);
    if (!nobody) return std::move(nobody).take_status();
    KVTILT_RETURN_IF_ERROR(gpu::to_status(
        cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing"));
    Status queued = queue_decode(*nobody);
    cudaGraph_t captured = nullptr;
    KVTILT_RETURN_IF_ERROR(gpu::to_status(cudaStreamEndCapture(stream, &captured), "capturing"));
    KVTILT_RETURN_IF_ERROR(std::move(queued));
    Status made = gpu::to_status(cudaGraphInstantiate(&graph, captured, 0), "making a graph");
    static_cast<void>(cudaGraphDestroy(captured));
    return made;
  }

  /// Admits a request only if all pages that it can ever need can be reserved: none runs out later.
  Status admit(int number) {
    const Request& request = requests[number];
    const std::int64_t tokens = request.prompt + request.answer + most_drafts;
    const auto parent = std::find_if(running.begin(), running.end(), [&](const Sequence& other) {
      return other.request == request.shares && other.prompt_left == 0;
    });
    const bool forks = parent != running.end();
    const int shared = forks ? requests[request.shares].prompt : 0;
    Result<SequenceId> id = forks ? cache.fork(parent->id, tokens, stream) : cache.open(stream);
    if (!id) return std::move(id).take_status();
    const auto prepare = [&]() -> Status {
      if (forks) KVTILT_RETURN_IF_ERROR(cache.truncate(*id, shared, stream));  // drop its answer
      return cache.reserve(*id, tokens, stream);
    };
    if (Status made = prepare(); !made.ok()) {
      KVTILT_RETURN_IF_ERROR(cache.close(*id, stream));
      return made;
    }
    running.push_back({*id, number, request.prompt - shared, request.answer, {}});
    if (!forks) return {};
    running.back().rows.assign(parent->rows.begin(), parent->rows.begin() + shared * row);
    shared_bytes += cache.memory(*id)->page_bytes;
    return {};
  }

  /// Prefills the next chunks of unfinished prompts.
  Status attend_chunks() {
    Step step;
    for (Sequence& sequence : running) {
      const int count = std::min(sequence.prompt_left, most_rows - step.rows());
      if (count > 0) step.add(sequence, count);
    }
    if (step.rows() == 0) return {};
    Result<gpu::SequenceBatch> chunks = cache.batch(step.ids, chunk_slots, stream);
    if (!chunks) return std::move(chunks).take_status();
    KVTILT_RETURN_IF_ERROR(project(step));
    for (int layer = 0, rows = step.rows(); layer < layers; ++layer) {
      const TensorView k = keys(layer, rows), v = values(layer, rows);
      KVTILT_RETURN_IF_ERROR(attention_of(layer).prefill.attend_prefill(
          *cache.view(layer), chunks->device, indptr.data(), queries(layer, rows), k, v,
          out(layer, rows), nullptr, {}, workspace, stream));
      KVTILT_RETURN_IF_ERROR(
          cache.append(*chunks, layer, k, v, indptr.data(), step.counts, stream));
    }
    for (std::size_t i = 0; i < step.ids.size(); ++i)
      step.sequences[i]->prompt_left -= step.counts[i];
    return check(step);
  }

  /// Decodes one token and its drafts per sequence with a finished prompt, then drops rejected
  /// drafts.
  Status decode() {
    Step step;
    for (Sequence& sequence : running)
      if (sequence.prompt_left == 0)
        step.add(sequence, 1 + random() % std::min(1 + most_drafts, sequence.answer_left));
    if (step.rows() == 0) return {};
    if (step.ids != batch.ids) {
      Result<gpu::SequenceBatch> now = cache.batch(step.ids, slots, stream);
      if (!now) return std::move(now).take_status();
      batch = std::move(*now);
    }
    KVTILT_RETURN_IF_ERROR(project(step));
    KVTILT_RETURN_IF_ERROR(gpu::to_status(cudaGraphLaunch(graph, stream), "decoding"));
    KVTILT_RETURN_IF_ERROR(cache.note_appended(batch, step.counts, stream));
    ++replays;
    KVTILT_RETURN_IF_ERROR(check(step));
    std::vector<std::int64_t> kept;
    for (std::size_t i = 0; i < step.ids.size(); ++i) {
      Sequence& sequence = *step.sequences[i];
      const int accepted = 1 + random() % step.counts[i];
      sequence.answer_left -= accepted;
      sequence.rows.resize(sequence.rows.size() - (step.counts[i] - accepted) * row);
      kept.push_back(sequence.length());
      rejected += step.counts[i] - accepted;
    }
    KVTILT_RETURN_IF_ERROR(copy(lengths.data(), kept.data(), kept.size()));
    return cache.truncate(batch, lengths.data(), kept, stream);
  }

  /// Makes the rows of a step and their indptr. Keys and values are normal; a query is the key of a
  /// random token up to its own, so that its attention concentrates on that token.
  Status project(const Step& step) {
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < step.ids.size(); ++i) {
      Sequence& sequence = *step.sequences[i];
      const int first = sequence.length(), elements = step.counts[i] * row;
      for (int j = 0; j < elements; ++j) sequence.rows.push_back(to_f16(normal(random)));
      for (int token = first; token < sequence.length(); ++token)
        for (int layer = 0; layer < layers; ++layer)
          for (int head = 0; head < heads; ++head)
            std::copy_n(sequence.at(random() % (token + 1), layer, key_head(head)), dim,
                        sequence.at(token, layer, head));
      KVTILT_RETURN_IF_ERROR(
          copy(inputs.data() + step.indptr[i] * row, sequence.at(first, 0, 0), elements));
    }
    std::vector<std::int32_t> starts = step.indptr;
    starts.resize(indptr.size(), step.rows());  // empty slots have no rows
    return copy(indptr.data(), starts.data(), starts.size());
  }

  /// Compares the outputs of a step with squared_error.
  Status check(const Step& step) {
    std::vector<F16> answers(outputs.size());
    KVTILT_RETURN_IF_ERROR(copy(answers.data(), outputs.data(), answers.size()));
    KVTILT_RETURN_IF_ERROR(gpu::to_status(cudaStreamSynchronize(stream), "a step"));
    for (std::size_t i = 0; i < step.ids.size(); ++i)
      for (int j = 0; j < step.counts[i]; ++j, ++tokens)
        for (int layer = 0; layer < layers; ++layer)
          for (int head = 0; head < heads; ++head) {
            Sequence& sequence = *step.sequences[i];
            const int at = (layer * most_rows + step.indptr[i] + j) * heads + head;
            const double square = squared_error(sequence, sequence.length() - step.counts[i] + j,
                                                layer, head, answers.data() + at * dim);
            squares[layer] += square;
            worst[layer] = std::max(worst[layer], std::sqrt(square));
          }
    return {};
  }

  Status run() {
    KVTILT_RETURN_IF_ERROR(attention[0].prefill.prepare(workspace, stream));
    KVTILT_RETURN_IF_ERROR(capture());
    const int count = static_cast<int>(std::size(requests));
    for (int step = 0, next = 0; next < count || !running.empty(); ++step) {
      for (; next < count && requests[next].arrives <= step; ++next) {
        Status refused = admit(next);
        if (refused.ok()) continue;
        const bool full =
            refused.code() == ErrorCode::OutOfMemory || refused.code() == ErrorCode::OutOfCapacity;
        if (!full || running.empty()) return refused;  // else a sequence that ends makes room
        if (waited++ == 0) std::printf("request %d waits: %s\n", next, refused.message().data());
        break;
      }
      KVTILT_RETURN_IF_ERROR(attend_chunks());
      KVTILT_RETURN_IF_ERROR(decode());
      if (cache.memory().elements > peak.elements) peak = cache.memory();
      for (const Sequence& sequence : running) {
        if (sequence.answer_left > 0) continue;
        Result<std::int64_t> length =
            cache.length(sequence.id, 0, stream);  // as the device counts it
        if (!length) return std::move(length).take_status();
        if (*length != sequence.length())
          return Status::error(ErrorCode::Corrupt, "%d tokens became %lld", sequence.length(),
                               static_cast<long long>(*length));
        KVTILT_RETURN_IF_ERROR(cache.close(sequence.id, stream));
      }
      running.remove_if([](const Sequence& sequence) { return sequence.answer_left == 0; });
    }
    return cache.poll(stream);
  }

  /// Whether everything occurred that this program is to show, and no answer has a larger error
  /// than values of 4 and 2 bits give; one from a wrong page would exceed 1.
  bool report() const {
    std::printf(
        "%d tokens: %d replays of the graph, %d drafts rejected, %d steps of waiting, "
        "%zu bytes of pages shared\n%zu bytes in use at most, %.2f bits per element, %.2f in "
        "sealed pages\n",
        tokens, replays, rejected, waited, shared_bytes, peak.bytes_in_use(), peak.effective_bits(),
        cache.page_bits());
    for (int layer = 0; layer < layers; ++layer)
      std::printf("layer %d, %s: rms error %.3f for values of 1, %.3f of the worst answer\n", layer,
                  to_string(plan.recipes[layer][0]).c_str(),
                  std::sqrt(squares[layer] / tokens / heads), worst[layer]);
    return replays > 0 && rejected > 0 && waited > 0 && shared_bytes > 0 && worst[0] < 0.25 &&
           std::max(worst[1], worst[2]) < 0.75;
  }
};

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no CUDA device: the program was compiled and not run");
    return 77;
  }
  cudaStream_t stream = nullptr;
  if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return 1;
  Engine engine(stream);
  const Status status = engine.run();
  if (!status.ok()) std::printf("%s\n", status.message().data());
  return status.ok() && engine.report() ? 0 : 1;
}
