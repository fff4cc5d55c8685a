// Multiply peaks of AMX: full 16 x 16 tiles, six of sums (the latency of 52 cycles over a step's 16 needs four), one
// of each factor.
#include "cpu/amx/instructions.h"
#include "gemm/probe.h"

namespace lowbit::cpu::amx {
namespace {

constexpr int sum_tiles = 6;

// Factors that toggle bits as real ones do, so that the clock is the one real work gets.
struct alignas(64) tile_bytes {
  uint8_t bytes[1024];
};

template <class Dot>
void multiply(const tile_bytes& factor, int64_t iterations) {
  const tile_scope tiles(16);
  tile_load<6>(&factor, 64);
  tile_load<7>(&factor, 64);
  for (int64_t i = 0; i < iterations; ++i) {
    Dot::template step<0, 6, 7>();
    Dot::template step<1, 6, 7>();
    Dot::template step<2, 6, 7>();
    Dot::template step<3, 6, 7>();
    Dot::template step<4, 6, 7>();
    Dot::template step<5, 6, 7>();
  }
}

void int8(int64_t iterations) {
  tile_bytes factor;
  for (uint32_t i = 0; i < 1024; ++i) factor.bytes[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
  multiply<dot_s8s8>(factor, iterations);
}

void bf16(int64_t iterations) {
  tile_bytes factor;
  for (uint32_t i = 0; i < 1024; i += 2) {  // +-[0.5, 2)
    factor.bytes[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
    factor.bytes[i + 1] = static_cast<uint8_t>(0x3f | (i * 2246822519u >> 31 << 7));
  }
  multiply<dot_bf16>(factor, iterations);
}

}  // namespace

extern const probe_row probes[] = {
    {"bf16", "", sum_tiles * 16 * 16 * 32 * 2.0, bf16},
    {"int8", "", sum_tiles * 16 * 16 * 64 * 2.0, int8},
};
extern const int num_probes = sizeof probes / sizeof probes[0];

}  // namespace lowbit::cpu::amx
