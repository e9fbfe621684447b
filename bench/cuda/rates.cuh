// SPDX-License-Identifier: MIT
/// Probes of issue rates: instructions per clock of an SM, alone and beside tensor core products.
#pragma once

#include "mma.cuh"
#include "probe_support.cuh"

namespace kvtilt::bench {

/// Independent chains per warp: more than latency times rate, even with one warp per sub-core.
constexpr int rate_chains = 8;

/// An instruction on eight registers in turn. The neighbouring register as an operand keeps the
/// assembler from merging one round into the next.
template <class Instruction>
struct Scalar {
  static constexpr int per_step = rate_chains;
  std::uint32_t x[rate_chains];

  __device__ void start(std::uint32_t seed) {
    for (int i = 0; i < rate_chains; ++i) x[i] = seed * (2 * i + 1) + threadIdx.x;
  }
  __device__ void step() {
#pragma unroll
    for (int i = 0; i < rate_chains; ++i) Instruction::apply(x[i], x[(i + 1) % rate_chains]);
  }
  __device__ std::uint32_t fold() const {
    std::uint32_t mix = 0;
    for (std::uint32_t item : x) mix ^= item;
    return mix;
  }
};

#define KVTILT_PROBE(Name, text)                                         \
  struct Name {                                                          \
    static constexpr const char* name = #Name;                           \
    __device__ static void apply(std::uint32_t& x, std::uint32_t next) { \
      asm volatile("{\n" text "\n}" : "+r"(x) : "r"(next));              \
    }                                                                    \
  }
#define KVTILT_FLOAT_PROBE(Name, text)                                           \
  struct Name {                                                                  \
    static constexpr const char* name = #Name;                                   \
    __device__ static void apply(std::uint32_t& x, std::uint32_t next) {         \
      float value = __uint_as_float(x);                                          \
      asm volatile("{\n" text "\n}" : "+f"(value) : "f"(__uint_as_float(next))); \
      x = __float_as_uint(value);                                                \
    }                                                                            \
  }

KVTILT_PROBE(LOP3, "lop3.b32 %0, %0, 0x00ff0f0f, %1, 0x6a;");  // (x & mask) ^ next
KVTILT_PROBE(SHF, "shf.r.wrap.b32 %0, %0, %1, 5;");
KVTILT_PROBE(PRMT, "prmt.b32 %0, %0, %1, 0x6521;");
KVTILT_PROBE(IADD3, "sub.u32 %0, %1, %0;");
KVTILT_PROBE(HMUL2, "mul.rn.f16x2 %0, %0, %1;");
KVTILT_PROBE(HADD2, "add.rn.f16x2 %0, %0, %1;");
KVTILT_PROBE(HFMA2, "fma.rn.f16x2 %0, %0, %1, %1;");
KVTILT_PROBE(HMNMX2, "max.f16x2 %0, %0, %1;");
KVTILT_FLOAT_PROBE(FFMA, "fma.rn.f32 %0, %0, %1, %1;");
KVTILT_FLOAT_PROBE(FMUL, "mul.rn.f32 %0, %0, %1;");
KVTILT_FLOAT_PROBE(FADD, "add.rn.f32 %0, %0, %1;");
KVTILT_FLOAT_PROBE(FMNMX, "max.f32 %0, %0, %1;");
KVTILT_FLOAT_PROBE(MUFU_EX2, "ex2.approx.ftz.f32 %0, %0;");
KVTILT_FLOAT_PROBE(F2FP, ".reg .b32 pair; cvt.rn.f16x2.f32 pair, %0, %1; mov.b32 %0, pair;");
KVTILT_FLOAT_PROBE(HADD2_F32,
                   ".reg .b16 low, high; mov.b32 {low, high}, %0; cvt.f32.f16 %0, high;");
KVTILT_PROBE(MOVM, "movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;");
KVTILT_PROBE(SHFL, "shfl.sync.bfly.b32 %0, %0, 4, 0x1f, 0xffffffff;");
// REDUX writes a uniform register: each one costs an extra move.
KVTILT_PROBE(REDUX, "redux.sync.max.u32 %0, %0, 0xffffffff;");

#undef KVTILT_PROBE
#undef KVTILT_FLOAT_PROBE

/// The mma with normal fp16 numbers in operand a, or 4-bit codes as subnormal ones.
template <bool IsSubnormal>
struct Hmma {
  static constexpr const char* name = IsSubnormal ? "HMMA_subnormal_a" : "HMMA";
  static constexpr int per_step = rate_chains;
  float sums[rate_chains][4];
  std::uint32_t a[4], b[2];

  __device__ void start(std::uint32_t seed) {
    for (auto& chain : sums)
      for (float& sum : chain) sum = 0;
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t bits = (seed + threadIdx.x) * (2 * i + 0x9e3779b9u);
      // fp16 numbers of 0.25 to 0.5, or codes.
      a[i] = IsSubnormal ? (bits & 0x000f000fu) : (bits & 0x07ff07ffu) | 0x34003400u;
    }
    for (int i = 0; i < 2; ++i) b[i] = ((seed + 3 * threadIdx.x) & 0x83ff83ffu) | 0x38003800u;
  }
  __device__ void apply(int chain) { mma(sums[chain], a, b); }
  __device__ void step() {
#pragma unroll
    for (int i = 0; i < rate_chains; ++i) apply(i);
  }
  __device__ std::uint32_t fold() const {
    std::uint32_t mix = 0;
    for (const auto& chain : sums)
      for (float sum : chain) mix ^= __float_as_uint(sum);
    return mix;
  }
};

/// Each mma followed by `Beside` independent instructions of another kind.
template <class Instruction, int Beside>
struct HmmaBeside {
  static constexpr int per_step = rate_chains;
  Hmma<true> matrices;
  Scalar<Instruction> others;

  __device__ void start(std::uint32_t seed) {
    matrices.start(seed);
    others.start(seed);
  }
  __device__ void step() {
#pragma unroll
    for (int i = 0; i < rate_chains; ++i) {
      matrices.apply(i);
#pragma unroll
      for (int j = Beside * i; j < Beside * (i + 1); ++j)
        Instruction::apply(others.x[j % rate_chains], others.x[(j + 1) % rate_chains]);
    }
  }
  __device__ std::uint32_t fold() const { return matrices.fold() ^ others.fold(); }
};

/// Shared-memory loads of Bytes per lane. Lanes with equal `lane & Lanes` read the same address: 0
/// is a broadcast, 3 the access of a row of an mma operand, 31 a separate address per lane.
template <int Bytes, int Lanes>
struct Lds {
  static constexpr int per_step = rate_chains;
  std::uint32_t address, mix;

  __device__ void start(std::uint32_t seed) {
    __shared__ __align__(16) std::uint32_t words[rate_chains * 32 * 4];
    for (int i = threadIdx.x; i < rate_chains * 32 * 4; i += blockDim.x) words[i] = seed + i;
    address =
        static_cast<std::uint32_t>(__cvta_generic_to_shared(words)) + (threadIdx.x & Lanes) * Bytes;
    mix = 0;
  }
  __device__ void step() {
    std::uint32_t first[rate_chains];
#pragma unroll
    for (int i = 0; i < rate_chains; ++i) first[i] = load(address + i * 512);
      // The compiler makes one three-operand XOR (LOP3) for two loads.
#pragma unroll
    for (int i = 0; i < rate_chains; ++i) mix ^= first[i];
  }
  /// Volatile, because otherwise the assembler would load once for all rounds.
  __device__ static std::uint32_t load(std::uint32_t from) {
    std::uint32_t x, y, z, w;
    if constexpr (Bytes == 16)
      asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(x), "=r"(y), "=r"(z), "=r"(w)
                   : "r"(from));
    else if constexpr (Bytes == 8)
      asm volatile("ld.volatile.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x), "=r"(y) : "r"(from));
    else
      asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(x) : "r"(from));
    return x;
  }
  __device__ std::uint32_t fold() const { return mix; }
};

/// Unrolled steps, so that the loop's own three instructions hardly count.
constexpr int unrolled_steps = 16;

struct Stamps {
  long long start, stop;
};

template <class Work>
__global__ void __launch_bounds__(512, 1)
    time_steps(std::uint32_t seed, int rounds, Stamps* stamps, std::uint32_t* sink) {
  Work work;
  work.start(seed);
  __syncthreads();
  const long long start = clock64();
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < unrolled_steps; ++step) work.step();
  }
  const long long stop = clock64();
  const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (threadIdx.x % 32 == 0) stamps[warp] = {start, stop};
  sink[blockIdx.x * blockDim.x + threadIdx.x] = work.fold();
}

class Rates {
 public:
  Rates(Report& report, int sms)
      : report_(report), sms_(sms), stamps_(sms * 16), sink_(sms * 512) {}

  void run() {
    measure_all<LOP3, SHF, PRMT, IADD3, HMUL2, HADD2, HFMA2, HMNMX2, FFMA, FMUL, FADD, FMNMX,
                MUFU_EX2, F2FP, HADD2_F32, MOVM, SHFL, REDUX>();
    measure<Hmma<false>>(Hmma<false>::name);
    measure<Hmma<true>>(Hmma<true>::name);
    beside<LOP3, 1>();
    beside<LOP3, 2>();
    beside<LOP3, 4>();
    beside<LOP3, 6>();
    beside<HFMA2, 4>();
    beside<FFMA, 4>();
    measure<Lds<16, 31>>("LDS128.lanes");
    measure<Lds<16, 3>>("LDS128.quads");
    measure<Lds<16, 0>>("LDS128.broadcast");
    measure<Lds<8, 31>>("LDS64.lanes");
    measure<Lds<8, 3>>("LDS64.quads");
    measure<Lds<8, 0>>("LDS64.broadcast");
    measure<Lds<4, 31>>("LDS32.lanes");
    measure<Lds<4, 0>>("LDS32.broadcast");
    clock_under_load<Scalar<FFMA>>("FFMA");
    clock_under_load<Hmma<false>>("HMMA");
    clock_under_load<Hmma<true>>("HMMA_subnormal_a");
  }

 private:
  template <class... Instructions>
  void measure_all() {
    (measure<Scalar<Instructions>>(Instructions::name), ...);
  }

  template <class Instruction, int Beside>
  void beside() {
    measure<HmmaBeside<Instruction, Beside>>("HMMA_beside_" + std::to_string(Beside) + "_" +
                                             Instruction::name);
  }

  /// Measures on one SM, with 1, 2 and 4 warps on each of its four sub-cores.
  template <class Work>
  void measure(const std::string& name) {
    for (const int warps : {1, 2, 4}) {
      constexpr int rounds = 64;
      std::vector<double> rates;
      for (int launch = 0; launch < 5; ++launch) {
        time_steps<Work><<<1, 4 * 32 * warps>>>(12345, rounds, stamps_.data(), sink_.data());
        finish();
        rates.push_back(1.0 * Work::per_step * unrolled_steps * rounds * 4 * warps /
                        cycles(4 * warps));
      }
      std::sort(rates.begin(), rates.end());
      report_.add("rate." + name + ".warps" + std::to_string(4 * warps), rates[2],
                  "warp_instructions/cycle/SM");
    }
  }

  /// Measures the clock after all SMs have worked for some milliseconds.
  template <class Work>
  void clock_under_load(const std::string& name) {
    double clock = 0, rate = 0;
    for (int launch = 0; launch < 3; ++launch) {
      constexpr int rounds = 20000;
      const double seconds = seconds_of(
          [&] { time_steps<Work><<<sms_, 512>>>(12345, rounds, stamps_.data(), sink_.data()); });
      clock = cycles(16) / seconds;
      rate = 1.0 * Work::per_step * unrolled_steps * rounds * 16 * sms_ / seconds;
    }
    report_.add("clock_under." + name, clock * 1e-6, "MHz");
    report_.add("rate_whole_gpu." + name, rate * 1e-9, "G_warp_instructions/s");
  }

  /// Cycles from the first start to the last stop of the first CTA's warps.
  double cycles(int warps) const {
    std::vector<Stamps> all = stamps_.read();
    long long start = all[0].start, stop = all[0].stop;
    for (int warp = 1; warp < warps; ++warp) {
      start = std::min(start, all[warp].start);
      stop = std::max(stop, all[warp].stop);
    }
    return static_cast<double>(stop - start);
  }

  Report& report_;
  int sms_;
  DeviceArray<Stamps> stamps_;
  DeviceArray<std::uint32_t> sink_;
};

}  // namespace kvtilt::bench
