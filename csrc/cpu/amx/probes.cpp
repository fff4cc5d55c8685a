// Multiply peaks of AMX: full 16 x 16 tiles, six of sums (the latency of 52 cycles over a step's 16 needs four), one
// of each factor.
#include <immintrin.h>

#include "gemm/probe.h"

namespace lowbit::cpu::amx {
namespace {

constexpr int sum_tiles = 6;

struct alignas(64) tile_config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(tile_config) == 64);

// Factors that toggle bits as real ones do, so that the clock is the one real work gets.
struct alignas(64) tile_bytes {
  uint8_t bytes[1024];
};

// In place of the compiler's intrinsics: gcc 12 declares neither the 64 bytes that LDTILECFG reads nor the tile that
// TILELOADD reads, and drops the stores that fill them.
void start(const tile_bytes& factor) {
  const tile_config config;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  __asm__ volatile(
      "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\t"
      "tilezero %%tmm3\n\ttilezero %%tmm4\n\ttilezero %%tmm5\n\t"
      "tileloadd (%0,%1,1), %%tmm6\n\ttileloadd (%0,%1,1), %%tmm7" ::"r"(&factor),
      "r"(int64_t{64}), "m"(factor));
}

void int8(int64_t iterations) {
  tile_bytes factor;
  for (uint32_t i = 0; i < 1024; ++i) factor.bytes[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
  start(factor);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbssd(0, 6, 7);
    _tile_dpbssd(1, 6, 7);
    _tile_dpbssd(2, 6, 7);
    _tile_dpbssd(3, 6, 7);
    _tile_dpbssd(4, 6, 7);
    _tile_dpbssd(5, 6, 7);
  }
  _tile_release();
}

void bf16(int64_t iterations) {
  tile_bytes factor;
  for (uint32_t i = 0; i < 1024; i += 2) {  // +-[0.5, 2)
    factor.bytes[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
    factor.bytes[i + 1] = static_cast<uint8_t>(0x3f | (i * 2246822519u >> 31 << 7));
  }
  start(factor);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  _tile_release();
}

}  // namespace

extern const probe_row probes[] = {
    {"bf16", "", sum_tiles * 16 * 16 * 32 * 2.0, bf16},
    {"int8", "", sum_tiles * 16 * 16 * 64 * 2.0, int8},
};
extern const int num_probes = sizeof probes / sizeof probes[0];

}  // namespace lowbit::cpu::amx
