// Every instruction of the vocabulary on random registers, one warp or warpgroup at a time; prints what comes out.
//
// The same source is built twice: by nvcc for the chip, by the host compiler against the emulator. What the two print
// must be equal (tests/python/test_cuda_conformance.py compares). Cases whose name ends in ~ sum floats that round: PTX
// leaves those sums open, and the difference is measured instead.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/common/convert.h"
#include "cuda/common/launch.h"
#if LOWBIT_CONFORMANCE_SM90
#include "cuda/common/tma.h"
#include "cuda/common/wgmma.h"
#endif

#ifdef LOWBIT_EMULATOR
#include "emulator/emulator.h"
#endif

namespace lowbit::cuda {

// ---- device memory ---------------------------------------------------------------------------------------------

#ifdef LOWBIT_EMULATOR
using words = emulator::buffer<uint32_t>;
static void wait_for_device() {}
#else
static void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
static void wait_for_device() { check(cudaDeviceSynchronize(), "kernel"); }

class words {
 public:
  explicit words(size_t count) : count_(count) { check(cudaMalloc(&data_, count * 4), "cudaMalloc"); }
  explicit words(const std::vector<uint32_t>& values) : words(values.size()) {
    check(cudaMemcpy(data_, values.data(), count_ * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~words() { cudaFree(data_); }
  uint32_t* data() const { return data_; }
  std::vector<uint32_t> values() const {
    std::vector<uint32_t> copy(count_);
    check(cudaMemcpy(copy.data(), data_, count_ * 4, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return copy;
  }

 private:
  size_t count_;
  uint32_t* data_ = nullptr;
};
#endif

// ---- one instruction a kernel ----------------------------------------------------------------------------------

constexpr int in_words = 16, out_words = 4;

struct arguments {
  const uint32_t* in;  // [cta][thread][in_words]
  uint32_t* out;       // [cta][thread][out_words]
};

template <class Instruction>
LOWBIT_KERNEL(32, 1)
void one_kernel(const arguments a) {
  const uint32_t* const in = a.in + (cta_index() * 32 + lane_index()) * in_words;
  uint32_t r[in_words], d[out_words] = {};
  LOWBIT_UNROLL
  for (int i = 0; i < in_words; ++i) r[i] = global_load<uint32_t>(in + i);
  Instruction::run(r, d, in);
  LOWBIT_UNROLL
  for (int i = 0; i < out_words; ++i)
    global_store<uint32_t>(a.out + (cta_index() * 32 + lane_index()) * out_words + i, d[i]);
}

using registers_in = const uint32_t (&)[in_words];
using registers_out = uint32_t (&)[out_words];

#define LOWBIT_INSTRUCTION(name)                                                        \
  struct name {                                                                         \
    LOWBIT_DEVICE static void run(registers_in r, registers_out d, const uint32_t* in); \
  };                                                                                    \
  LOWBIT_DEVICE void name::run([[maybe_unused]] registers_in r, registers_out d, [[maybe_unused]] const uint32_t* in)

LOWBIT_INSTRUCTION(permute) { d[0] = permute_bytes(r[0], r[1], r[2]); }
LOWBIT_INSTRUCTION(logic) {
  d[0] = logic3<0xea>(r[0], r[1], r[2]);
  d[1] = logic3<0x6a>(r[0], r[1], r[2]);
  d[2] = logic3<0x1d>(r[0], r[1], r[2]);
}
LOWBIT_INSTRUCTION(funnel) { d[0] = funnel_shift_right(r[0], r[1], static_cast<int>(r[2] % 32)); }
LOWBIT_INSTRUCTION(dot4) { d[0] = static_cast<uint32_t>(dot4_s8(r[0], r[1], static_cast<int32_t>(r[2]))); }
template <class T>
struct pairs {
  LOWBIT_DEVICE static void run(registers_in r, registers_out d, const uint32_t*) {
    d[0] = fma2<T>(r[0], r[1], r[2]);
    d[1] = mul2<T>(r[0], r[1]);
    d[2] = add2<T>(r[0], r[1]);
    d[3] = sub2<T>(r[0], r[1]);
  }
};
template <class T>
struct packing {
  LOWBIT_DEVICE static void run(registers_in r, registers_out d, const uint32_t*) {
    d[0] = pack2<T>(as_float(r[0]), as_float(r[1]));
    // A NaN that widens keeps bits that differ between chips: leave NaNs out.
    const float lo = low<T>(r[2]), hi = high<T>(r[2]);
    d[1] = lo == lo ? as_u32(lo) : 0;
    d[2] = hi == hi ? as_u32(hi) : 0;
  }
};
LOWBIT_INSTRUCTION(e4m3) {
  d[0] = pack_e4m3x2(as_float(r[0]), as_float(r[1]));
  d[1] = e4m3x2_to_f16x2(static_cast<uint16_t>(r[2]));
  d[2] = pack_e4m3x2(as_float((r[3] & 0x87ffffffu) | 0x38000000u), as_float((r[4] & 0x80ffffffu) | 0x43000000u));
}
LOWBIT_INSTRUCTION(numbers) {
  const float a = as_float(r[0]), b = as_float(r[1]), c = as_float(r[2]);
  const auto bits = [](float x) { return x == x ? as_u32(x) : 0x7fffffffu; };
  d[0] = bits(multiply_add(a, b, c));
  d[1] = bits(divide(a, b));
  d[2] = bits(square_root(a));
  d[3] = static_cast<uint32_t>(round_to_int(as_float((r[3] & 0x8fffffffu) | 0x40000000u)));
}
LOWBIT_INSTRUCTION(lanes) {
  d[0] = shuffle(r[0], static_cast<int>(r[1] % 32));
  d[1] = shuffle_xor(r[0], 5);
  d[2] = shuffle_down(r[0], 3);
  d[3] = ballot(r[2] & 1) ^ (any(r[3] % 64 == 0) ? 1u : 0u) ^ (all(r[3] % 64 != 0) ? 2u : 0u);
}

LOWBIT_DEVICE void fill_shared(registers_in r) {  // 64 bytes a lane
  const uint32_t base = shared_base() + static_cast<uint32_t>(lane_index()) * 64;
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i)
    shared_store<u32x4>(base + static_cast<uint32_t>(i) * 16,
                        u32x4{r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]});
  sync_warp();
}
template <int N, bool transposed>
struct load_matrices {
  LOWBIT_DEVICE static void run(registers_in r, registers_out d, const uint32_t*) {
    fill_shared(r);
    const uint32_t row = shared_base() + static_cast<uint32_t>((lane_index() * 37 + 11) % 128) * 16;
    uint32_t v[N];
    if constexpr (transposed)
      ldmatrix_transposed<N>(v, row);
    else
      ldmatrix<N>(v, row);
    LOWBIT_UNROLL
    for (int i = 0; i < N; ++i) d[i] = v[i];
  }
};
#if LOWBIT_CONFORMANCE_SM90
template <int N, bool transposed>
struct store_matrices {
  LOWBIT_DEVICE static void run(registers_in r, registers_out d, const uint32_t*) {
    fill_shared(r);
    const uint32_t row = shared_base() + static_cast<uint32_t>((lane_index() * 5 + 3) % 32) * 16;
    uint32_t v[N];
    LOWBIT_UNROLL
    for (int i = 0; i < N; ++i) v[i] = r[8 + i];
    if constexpr (transposed)
      stmatrix_transposed<N>(row, v);
    else
      stmatrix<N>(row, v);
    sync_warp();
    const u32x4 w = shared_load<u32x4>(shared_base() + static_cast<uint32_t>(lane_index()) * 16);
    d[0] = w.x, d[1] = w.y, d[2] = w.z, d[3] = w.w;
  }
};
#endif
template <int bytes>
struct copying {
  LOWBIT_DEVICE static void run(registers_in r, registers_out d, const uint32_t* in) {
    const uint32_t to = shared_base() + static_cast<uint32_t>(lane_index()) * 16;
    shared_store<u32x4>(to, u32x4{r[0], r[1], r[2], r[3]});
    async_copy<bytes>(to, in + 8, static_cast<int>(r[4] % (bytes + 1)));
    async_commit();
    async_wait<0>();
    const u32x4 w = shared_load<u32x4>(to);
    d[0] = w.x, d[1] = w.y, d[2] = w.z, d[3] = w.w;
  }
};

struct as_bf16 {
  static constexpr int kind = 0;
};
struct as_f16 {
  static constexpr int kind = 1;
};
struct as_e4m3 {
  static constexpr int kind = 2;
};
struct as_s8 {
  static constexpr int kind = 3;
};
template <class As>
struct products {
  LOWBIT_DEVICE static void run(registers_in r, registers_out d, const uint32_t*) {
    const uint32_t a[4] = {r[0], r[1], r[2], r[3]}, b[2] = {r[4], r[5]};
    if constexpr (As::kind == 3) {
      int32_t c[4] = {static_cast<int32_t>(r[8]), static_cast<int32_t>(r[9]), static_cast<int32_t>(r[10]),
                      static_cast<int32_t>(r[11])};
      mma_m16n8k32_s8(c, a, b);
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) d[i] = static_cast<uint32_t>(c[i]);
    } else {
      float c[4] = {as_float(r[8]), as_float(r[9]), as_float(r[10]), as_float(r[11])};
      if constexpr (As::kind == 0) mma_m16n8k16<bf16_t>(c, a, b);
      if constexpr (As::kind == 1) mma_m16n8k16<f16_t>(c, a, b);
#if LOWBIT_DEVICE_ARCH == 0 || LOWBIT_DEVICE_ARCH >= 890
      if constexpr (As::kind == 2) mma_m16n8k32_e4m3(c, a, b);
#endif
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) d[i] = as_u32(c[i]);
    }
  }
};

// ---- wgmma and tensor copies: a warpgroup, B through a tensor map
// ----------------------------------------------------

#if LOWBIT_CONFORMANCE_SM90
struct group_arguments {
  tensor_map b;        // 64 rows of 128 bytes
  const uint32_t* in;  // [thread][16]
  uint32_t* out;       // [thread][columns / 2], then the 2048 words of shared memory as the copy left them
};

template <class T, class Sum>
LOWBIT_KERNEL(128, 1)
void group_kernel(const LOWBIT_GRID_CONSTANT group_arguments a) {
  constexpr int columns = 64;
  const uint32_t base = shared_base(), barrier = base + columns * 128;
  if (thread_index() == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
  }
  sync_threads();
  if (thread_index() == 0) {
    mbarrier_expect_bytes(barrier, columns * 128);
    tensor_copy(base, a.b, 0, 0, barrier);
  }
  mbarrier_wait(barrier, 0);
  uint32_t fragment[4][4];
  LOWBIT_UNROLL
  for (int i = 0; i < 16; ++i) fragment[i / 4][i % 4] = global_load<uint32_t>(a.in + thread_index() * 16 + i);
  Sum d[columns / 2];
  LOWBIT_UNROLL
  for (int i = 0; i < columns / 2; ++i) d[i] = 0;
  wgmma_fence();
  LOWBIT_UNROLL
  for (int k = 0; k < 4; ++k)
    wgmma<T, columns>::run(d, fragment[k], wgmma_descriptor(base + static_cast<uint32_t>(k) * 32), k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  LOWBIT_UNROLL
  for (int i = 0; i < columns / 2; ++i) {
    wgmma_hold(d[i]);
    global_store<Sum>(a.out + thread_index() * (columns / 2) + i, d[i]);
  }
  for (int i = thread_index(); i < columns * 32; i += 128)
    global_store<uint32_t>(a.out + 128 * columns / 2 + i, shared_load<uint32_t>(base + static_cast<uint32_t>(i) * 4));
}
#endif

// ---- inputs ----------------------------------------------------------------------------------------------------

// bits: any. exact: operands 0 .. 11 whose products and sums no format rounds. near: floats of like size.
enum class inputs { bits, exact_bf16, exact_f16, exact_e4m3, near_bf16, near_f16, near_e4m3 };

static uint32_t random_word(std::mt19937& random, inputs kind, int index) {
  const bool sum = index >= 8;
  const auto small = [&] { return static_cast<float>(random() % 17) - 8; };
  const auto near = [&] { return (static_cast<float>(random() % 0x10000) / 0x8000 - 1) * 4; };
  const auto half = [&](float x, bool bf16) { return bf16 ? f32_to_bf16(x) : f32_to_f16(x); };
  const auto code = [&] {
    static const uint8_t codes[] = {0x00, 0x38, 0xb8, 0x40, 0xc0, 0x44, 0xc4, 0x48};  // 0, +-1, +-2, +-3, 4
    return uint32_t{codes[random() % sizeof codes]};
  };
  const auto bits_of = [](float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
  };
  switch (kind) {
    case inputs::exact_bf16:
    case inputs::exact_f16: {
      const bool bf16 = kind == inputs::exact_bf16;
      return sum ? bits_of(small()) : half(small(), bf16) | static_cast<uint32_t>(half(small(), bf16)) << 16;
    }
    case inputs::exact_e4m3:
      return sum ? bits_of(small()) : code() | code() << 8 | code() << 16 | code() << 24;
    case inputs::near_bf16:
    case inputs::near_f16: {
      const bool bf16 = kind == inputs::near_bf16;
      return sum ? bits_of(near()) : half(near(), bf16) | static_cast<uint32_t>(half(near(), bf16)) << 16;
    }
    case inputs::near_e4m3:
      return sum ? bits_of(near()) : (static_cast<uint32_t>(random()) & 0x9f9f9f9fu) + 0x20202020u;
    default: {
      const auto word = static_cast<uint32_t>(random());
      // Half of the time floats of like exponents, so that sums cancel and quotients are ordinary.
      return random() % 2 ? word : (word & 0x807fffffu) | (0x3c000000u + (word >> 8 & 0x07800000u));
    }
  }
}

static void print(const char* name, const std::vector<uint32_t>& values, size_t per_line) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (i % per_line == 0) std::printf("%s%s", i ? "\n" : "", name);
    std::printf(" %08x", values[i]);
  }
  std::printf("\n");
}

static void require(lowbit_status status, const char* name) {
  if (status == LOWBIT_OK) return;
  std::fprintf(stderr, "%s: %s\n", name, last_error());
  std::exit(1);
}

template <class Instruction>
void run(const char* name, inputs kind = inputs::bits) {
  constexpr int ctas = 64;
  std::mt19937 random(17);
  std::vector<uint32_t> in(ctas * 32 * in_words);
  for (size_t i = 0; i < in.size(); ++i) in[i] = random_word(random, kind, static_cast<int>(i % in_words));
  words device_in(in), out(ctas * 32 * out_words);
  require(launch<one_kernel<Instruction>>({.grid_x = ctas, .threads = 32, .shared_bytes = 2048},
                                          arguments{device_in.data(), out.data()}),
          name);
  wait_for_device();
  print(name, out.values(), 32 * out_words);
}

#if LOWBIT_CONFORMANCE_SM90
template <class T, class Sum>
void run_group(const char* name, inputs kind) {
  std::mt19937 random(23);
  std::vector<uint32_t> in(128 * 16), b(64 * 32);
  for (uint32_t& x : in) x = random_word(random, kind, 0);
  for (uint32_t& x : b) x = random_word(random, kind, 0);
  words device_in(in), device_b(b), out(128 * 32 + 64 * 32);
  constexpr int bytes = __is_same(T, bf16_t) || __is_same(T, f16_t) ? 2 : 1;
  group_arguments a{{}, device_in.data(), out.data()};
  require(make_tensor_map(&a.b, bytes, device_b.data(), 128 / bytes, 64, 128, 64), name);
  require(launch<group_kernel<T, Sum>>({.grid_x = 1, .threads = 128, .shared_bytes = 64 * 128 + 16}, a), name);
  wait_for_device();
  print(name, out.values(), 64);
}
#endif

}  // namespace lowbit::cuda

int main([[maybe_unused]] int argc, [[maybe_unused]] char** argv) {
  using namespace lowbit::cuda;
#ifdef LOWBIT_EMULATOR
  const int arch = argc > 1 ? std::atoi(argv[1]) : 90;
  emulator::options options;
  options.arch = arch;
  options.fp8 =
      argc > 2 && std::string(argv[2]) == "truncated" ? emulator::fp8_sums::truncated : emulator::fp8_sums::exact;
  const emulator::with with(options);
#else
  constexpr int skipped = 77;
  int devices = 0, major = 0, minor = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices)) {
    std::printf("no GPU: %s\n", cudaGetErrorString(error));
    return skipped;
  }
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "attribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "attribute");
  const int arch = major * 10 + minor;
#if LOWBIT_CONFORMANCE_SM90
  if (arch != 90) {
    std::printf("the GPU is sm_%d, not sm_90\n", arch);
    return skipped;
  }
#endif
#endif
  std::printf("arch %d\n", arch);
  run<permute>("permute_bytes");
  run<logic>("logic3");
  run<funnel>("funnel_shift_right");
  run<dot4>("dot4_s8");
  run<pairs<bf16_t>>("pairs_bf16");
  run<pairs<f16_t>>("pairs_f16");
  run<packing<bf16_t>>("pack2_bf16");
  run<packing<f16_t>>("pack2_f16");
  run<e4m3>("e4m3");
  run<numbers>("fp32");
  run<lanes>("lanes");
  run<load_matrices<1, false>>("ldmatrix_1");
  run<load_matrices<2, false>>("ldmatrix_2");
  run<load_matrices<4, false>>("ldmatrix_4");
  run<load_matrices<1, true>>("ldmatrix_transposed_1");
  run<load_matrices<2, true>>("ldmatrix_transposed_2");
  run<load_matrices<4, true>>("ldmatrix_transposed_4");
  run<copying<4>>("async_copy_4");
  run<copying<8>>("async_copy_8");
  run<copying<16>>("async_copy_16");
  run<products<as_s8>>("mma_s8");
  run<products<as_bf16>>("mma_bf16", inputs::exact_bf16);
  run<products<as_f16>>("mma_f16", inputs::exact_f16);
  run<products<as_bf16>>("mma_bf16~", inputs::near_bf16);
  run<products<as_f16>>("mma_f16~", inputs::near_f16);
  if (arch >= 89) {
    run<products<as_e4m3>>("mma_e4m3", inputs::exact_e4m3);
    run<products<as_e4m3>>("mma_e4m3~", inputs::near_e4m3);
  }
#if LOWBIT_CONFORMANCE_SM90
  if (arch == 90) {
    run<store_matrices<1, false>>("stmatrix_1");
    run<store_matrices<2, false>>("stmatrix_2");
    run<store_matrices<4, false>>("stmatrix_4");
    run<store_matrices<4, true>>("stmatrix_transposed_4");
    run_group<s8_t, int32_t>("wgmma_s8", inputs::bits);
    run_group<bf16_t, float>("wgmma_bf16", inputs::exact_bf16);
    run_group<f16_t, float>("wgmma_f16", inputs::exact_f16);
    run_group<e4m3_t, float>("wgmma_e4m3", inputs::exact_e4m3);
    run_group<bf16_t, float>("wgmma_bf16~", inputs::near_bf16);
    run_group<f16_t, float>("wgmma_f16~", inputs::near_f16);
    run_group<e4m3_t, float>("wgmma_e4m3~", inputs::near_e4m3);
  }
#endif
  return 0;
}
