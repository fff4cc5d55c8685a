// The emulator itself: fragments against plain loops, collectives, barriers, copies, launches.
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
