// The emulator itself: fragments against plain loops, collectives, barriers, copies, launches.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cuda/common/convert.h"
#include "cuda/common/launch.h"
#include "emulator/emulator.h"
#include "test.h"

namespace lowbit::cuda {
namespace {

std::mt19937 generator(7);

// ---- a matrix product through ldmatrix and mma -------------------------------------------------------------------

struct product_arguments {
  const uint16_t *a, *b;  // 16 x 16, 8 x 16: row-major
  float* c;
};

template <class T>
LOWBIT_KERNEL(32, 1)
void product_kernel(const product_arguments p) {
  const uint32_t base = shared_base();
  const int lane = lane_index();
  async_copy<16>(base + static_cast<uint32_t>(lane) * 16, p.a + lane * 8);
  if (lane < 16) async_copy<16>(base + 512 + static_cast<uint32_t>(lane) * 16, p.b + lane * 8);
  async_commit();
  async_wait<0>();
  sync_threads();
  uint32_t a[4], b[2];
  // Matrices of A: rows 0-7, rows 8-15 of columns 0-7, then of columns 8-15.
  ldmatrix<4>(a, base + static_cast<uint32_t>(lane % 16 * 32 + lane / 16 * 16));
  ldmatrix<2>(b, base + 512 + static_cast<uint32_t>(lane % 8 * 32 + lane / 8 % 2 * 16));
  float c[4] = {};
  mma_m16n8k16<T>(c, a, b);
  mma_m16n8k16<T>(c, a, b);
  const int g = lane / 4, t = lane % 4;
  global_store<u32x2>(p.c + g * 8 + 2 * t, u32x2{as_u32(c[0]), as_u32(c[1])});
  global_store<u32x2>(p.c + (g + 8) * 8 + 2 * t, u32x2{as_u32(c[2]), as_u32(c[3])});
}

template <class T>
void check_product() {
  std::vector<uint16_t> a(256), b(128);
  for (uint16_t& x : a) x = detail::from_float<T>(static_cast<float>(generator() % 64) - 32);
  for (uint16_t& x : b) x = detail::from_float<T>(static_cast<float>(generator() % 64) - 32);
  emulator::buffer<uint16_t> device_a(a), device_b(b);
  emulator::buffer<float> c(128);
  CHECK_EQ(launch<product_kernel<T>>({.grid_x = 1, .threads = 32, .shared_bytes = 768},
                                     product_arguments{device_a.data(), device_b.data(), c.data()}),
           LOWBIT_OK);
  CHECK(emulator::failure().empty(), "%s", emulator::failure().c_str());
  if (!emulator::failure().empty()) return;
  const std::vector<float> got = c.values();
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j) {
      float sum = 0;
      for (size_t k = 0; k < 16; ++k) sum += to_float<T>(a[i * 16 + k]) * to_float<T>(b[j * 16 + k]);
      CHECK_EQ(got[i * 8 + j], 2 * sum);
    }
}

TEST(products_of_16_bit_floats_through_fragments) {
  check_product<bf16_t>();
  check_product<f16_t>();
}

struct byte_product_arguments {
  const uint8_t *a, *b;  // 16 x 32, 8 x 32
  uint32_t* c;
};

template <bool integer>
LOWBIT_KERNEL(32, 1)
void byte_product_kernel(const byte_product_arguments p) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = global_load<uint32_t>(p.a + (g + 8 * (i % 2)) * 32 + 4 * t + 16 * (i / 2));
  for (int i = 0; i < 2; ++i) b[i] = global_load<uint32_t>(p.b + g * 32 + 4 * t + 16 * i);
  uint32_t out[4];
  if constexpr (integer) {
    int32_t c[4] = {1, 2, 3, 4};
    mma_m16n8k32_s8(c, a, b);
    for (int i = 0; i < 4; ++i) out[i] = static_cast<uint32_t>(c[i]);
  } else {
    float c[4] = {1, 2, 3, 4};
    mma_m16n8k32_e4m3(c, a, b);
    for (int i = 0; i < 4; ++i) out[i] = as_u32(c[i]);
  }
  for (int i = 0; i < 4; ++i) global_store<uint32_t>(p.c + (g + 8 * (i / 2)) * 8 + 2 * t + i % 2, out[i]);
}

TEST(products_of_bytes_through_fragments) {
  std::vector<uint8_t> a(512), b(256);
  for (uint8_t& x : a) x = static_cast<uint8_t>(generator() % 0x50);
  for (uint8_t& x : b) x = static_cast<uint8_t>(0x80 + generator() % 0x50);
  emulator::buffer<uint8_t> device_a(a), device_b(b);
  emulator::buffer<uint32_t> c(128), d(128);
  CHECK_EQ(launch<byte_product_kernel<true>>({.grid_x = 1, .threads = 32},
                                             byte_product_arguments{device_a.data(), device_b.data(), c.data()}),
           LOWBIT_OK);
  CHECK_EQ(launch<byte_product_kernel<false>>({.grid_x = 1, .threads = 32},
                                              byte_product_arguments{device_a.data(), device_b.data(), d.data()}),
           LOWBIT_OK);
  const std::vector<uint32_t> integers = c.values(), floats = d.values();
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j) {
      int32_t sum = static_cast<int32_t>(j % 2 + i / 8 * 2 + 1);
      double exact = sum;
      for (size_t k = 0; k < 32; ++k) {
        sum += static_cast<int8_t>(a[i * 32 + k]) * static_cast<int8_t>(b[j * 32 + k]);
        exact += static_cast<double>(e4m3.value(a[i * 32 + k])) * static_cast<double>(e4m3.value(b[j * 32 + k]));
      }
      CHECK_EQ(static_cast<int32_t>(integers[i * 8 + j]), sum);
      CHECK_EQ(as_float(floats[i * 8 + j]), static_cast<float>(exact));
    }
}

// ---- fragments as CUTLASS states them ------------------------------------------------------------------------------
//
// CuTe's MMA_Traits (include/cute/atom/mma_traits_sm80.hpp) give for each operand a layout (thread, value) -> index in
// the column-major matrix, as shape : stride. It was written independently of PTX's figures, and of our loops.

struct tv_layout {
  int thread_stride[2];                 // of t = lane % 4 and of g = lane / 4
  int value_shape[3], value_stride[3];  // the elements of a lane, in the order of its registers
  int rows;
  size_t index(int lane, int value) const {
    int at = lane % 4 * thread_stride[0] + lane / 4 * thread_stride[1];
    for (int i = 0; i < 3; ++i) {
      at += value % value_shape[i] * value_stride[i];
      value /= value_shape[i];
    }
    return static_cast<size_t>(at);
  }
};

constexpr tv_layout a16{{32, 1}, {2, 2, 2}, {16, 8, 128}, 16}, b16{{16, 1}, {2, 2, 1}, {8, 64, 0}, 8};
constexpr tv_layout a8{{64, 1}, {4, 2, 2}, {16, 8, 256}, 16}, b8{{32, 1}, {4, 2, 1}, {8, 128, 0}, 8};
constexpr tv_layout c32{{32, 1}, {2, 2, 1}, {16, 8, 0}, 16};

struct register_arguments {
  const uint32_t *a, *b;  // [lane][4], [lane][2]
  uint32_t* c;            // [lane][4]
};

template <int kind>  // 0 bf16, 1 f16, 2 e4m3, 3 s8
LOWBIT_KERNEL(32, 1) void register_kernel(const register_arguments p) {
  const int lane = lane_index();
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = global_load<uint32_t>(p.a + lane * 4 + i);
  for (int i = 0; i < 2; ++i) b[i] = global_load<uint32_t>(p.b + lane * 2 + i);
  float c[4] = {};
  int32_t ci[4] = {};
  if constexpr (kind == 0) mma_m16n8k16<bf16_t>(c, a, b);
  if constexpr (kind == 1) mma_m16n8k16<f16_t>(c, a, b);
  if constexpr (kind == 2) mma_m16n8k32_e4m3(c, a, b);
  if constexpr (kind == 3) mma_m16n8k32_s8(ci, a, b);
  for (int i = 0; i < 4; ++i) global_store<float>(p.c + lane * 4 + i, kind == 3 ? static_cast<float>(ci[i]) : c[i]);
}

template <int kind>
void check_layouts() {
  constexpr int bits = kind < 2 ? 16 : 8, depth = 256 / bits;
  const tv_layout &la = bits == 16 ? a16 : a8, &lb = bits == 16 ? b16 : b8;
  std::vector<float> a(16 * depth), b(8 * depth);  // column-major
  for (float& x : a) x = static_cast<float>(generator() % 8);
  for (float& x : b) x = static_cast<float>(generator() % 8);
  const auto code = [](float x) -> uint32_t {
    if constexpr (kind == 0) return f32_to_bf16(x);
    if constexpr (kind == 1) return f32_to_f16(x);
    if constexpr (kind == 2) return detail::f32_to_e4m3(x);
    return static_cast<uint32_t>(x);
  };
  const auto fill = [&](const tv_layout& layout, const std::vector<float>& from, int words) {
    std::vector<uint32_t> registers(static_cast<size_t>(32 * words));
    for (int lane = 0; lane < 32; ++lane)
      for (int value = 0; value < words * 32 / bits; ++value)
        registers[static_cast<size_t>(lane * words + value * bits / 32)] |= code(from[layout.index(lane, value)])
                                                                            << value * bits % 32;
    return registers;
  };
  emulator::buffer<uint32_t> device_a(fill(la, a, 4)), device_b(fill(lb, b, 2)), c(128);
  CHECK_EQ(launch<register_kernel<kind>>({.grid_x = 1, .threads = 32},
                                         register_arguments{device_a.data(), device_b.data(), c.data()}),
           LOWBIT_OK);
  const std::vector<uint32_t> got = c.values();
  for (int lane = 0; lane < 32; ++lane)
    for (int value = 0; value < 4; ++value) {
      const size_t at = c32.index(lane, value), m = at % 16, n = at / 16;
      float sum = 0;
      for (size_t k = 0; k < depth; ++k) sum += a[m + 16 * k] * b[n + 8 * k];
      CHECK_EQ(as_float(got[static_cast<size_t>(lane * 4 + value)]), sum);
    }
}

TEST(fragments_are_cutlass_layouts) {
  check_layouts<0>();
  check_layouts<1>();
  check_layouts<2>();
  check_layouts<3>();
}

// ---- conversions ---------------------------------------------------------------------------------------------------

// A half as a multiple of 2^-48: exact.
__extension__ using wide = __int128;
wide fixed(uint16_t half) {
  const auto value = static_cast<double>(f16_to_f32(half));
  return static_cast<wide>(value * 0x1p24) << 24;
}
wide fixed_product(uint16_t a, uint16_t b) { return (fixed(a) >> 24) * (fixed(b) >> 24); }

TEST(half_products_and_sums_round_once) {
  for (int i = 0; i < 100000; ++i) {
    const auto a = static_cast<uint16_t>(generator()), b = static_cast<uint16_t>(generator());
    auto c = static_cast<uint16_t>(generator());
    if (i % 2) {  // a sum that cancels nearly
      c = static_cast<uint16_t>(detail::from_float<f16_t>(-f16_to_f32(a) * f16_to_f32(b)) + generator() % 3);
    }
    const auto got = static_cast<uint16_t>(fma2<f16_t>(a, b, c));
    if ((a & 0x7c00) == 0x7c00 || (b & 0x7c00) == 0x7c00 || (c & 0x7c00) == 0x7c00) continue;
    const wide exact = fixed_product(a, b) + fixed(c), limit = static_cast<wide>(65520) << 48;
    if ((got & 0x7fff) == 0x7c00) {
      CHECK(exact >= limit || exact <= -limit, "%04x %04x %04x overflow", a, b, c);
      continue;
    }
    const auto distance = [&](uint16_t half) {
      const wide d = fixed(half) - exact;
      return d < 0 ? -d : d;
    };
    for (const int step : {-1, 1}) {
      const auto other = static_cast<uint16_t>(got + step);
      if ((other & 0x7c00) == 0x7c00 || ((got & 0x7fff) == 0 && step < 0)) continue;
      CHECK(distance(got) < distance(other) || (distance(got) == distance(other) && !(got & 1)),
            "fma(%04x, %04x, %04x) = %04x, but %04x is nearer", a, b, c, got, other);
    }
  }
}

TEST(e4m3_codes_are_the_nearest) {
  const auto check = [](float x) {
    const uint32_t got = pack_e4m3x2(x, 0) & 0xff;
    uint32_t best = 0x7e;
    for (uint32_t code = 0; code < 0x7f; ++code) {
      const double d = std::fabs(static_cast<double>(e4m3.value(code)) - std::fabs(static_cast<double>(x)));
      const double least = std::fabs(static_cast<double>(e4m3.value(best)) - std::fabs(static_cast<double>(x)));
      if (d < least || (d == least && code % 2 == 0)) best = code;
    }
    CHECK(got == (best | (std::signbit(x) ? 0x80u : 0u)), "%g: %02x, should be %02x", static_cast<double>(x), got,
          best);
  };
  for (uint32_t code = 0; code + 1 < 0x7f; ++code) {
    const float low_value = e4m3.value(code), high_value = e4m3.value(code + 1), middle = (low_value + high_value) / 2;
    for (const float x : {low_value, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      check(x);
      check(-x);
    }
  }
  for (int i = 0; i < 2000; ++i)
    check(std::ldexp(static_cast<float>(generator() % 65536), static_cast<int>(generator() % 30) - 30));
  CHECK_EQ(pack_e4m3x2(std::numeric_limits<float>::quiet_NaN(), -1e30f), 0xfe7fu);
  for (uint32_t code = 0; code < 256; ++code) {
    const float value = e4m3.value(code),
                got = f16_to_f32(static_cast<uint16_t>(e4m3x2_to_f16x2(static_cast<uint16_t>(code))));
    CHECK(value == got || (value != value && got != got), "%02x: %g", code, static_cast<double>(got));
  }
}

// ---- speed: not a check, a figure --------------------------------------------------------------------------------

struct nothing {
  float* out;
};

LOWBIT_KERNEL(128, 1) void many_products_kernel(const nothing p) {
  uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80}, b[2] = {0x3f803f80, 0x3f803f80};
  float c[4] = {};
  for (int i = 0; i < 1000; ++i) mma_m16n8k16<bf16_t>(c, a, b);
  global_store<float>(p.out + thread_index(), c[0]);
}

TEST(many_products) {
  emulator::buffer<float> out(128);
  CHECK_EQ(launch<many_products_kernel>({.grid_x = 1, .threads = 128}, nothing{out.data()}), LOWBIT_OK);
  for (const float x : out.values()) CHECK_EQ(x, 16000.0f);
}

}  // namespace
}  // namespace lowbit::cuda
