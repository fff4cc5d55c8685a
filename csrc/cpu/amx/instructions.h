// AMX in named one-liners (Intel SDM vol. 2, "Intel AMX Instruction Set Reference"). Tiles are named by use:
// sums C 0-3, weights A 4-5, activations B 6-7. The compiler's own intrinsics take literals only, and gcc 12 declares
// neither the 64 bytes that LDTILECFG reads nor the tile that TILELOADD reads. tests/cpu_emulator has the same names in
// C++, for processors without AMX and for the sanitizers.
#pragma once

#include <cstdint>

namespace lowbit::cpu {
namespace {

constexpr int weight_tile = 4, activation_tile = 6;

// Configures the tiles of this thread for sums of 16 outputs x `columns` activation rows, and frees them at the end.
class tile_scope {
 public:
  explicit tile_scope(int columns) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_per_row[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int t = 0; t < 8; ++t) {
      config.rows[t] = 16;
      config.bytes_per_row[t] = static_cast<uint16_t>(t / 2 == weight_tile / 2 ? 64 : 4 * columns);
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
  ~tile_scope() { __asm__ volatile("tilerelease" ::: "memory"); }
  tile_scope(const tile_scope&) = delete;
  tile_scope& operator=(const tile_scope&) = delete;
};

template <int T>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void tile_load(const void* data, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(data), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* data, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(data), "r"(stride), "i"(T) : "memory");
}

// C[n][m] += sum_k A[n][k] B[k][m]: 16 x 16 sums, 64 bytes of k.
struct dot_bf16 {  // bf16 pairs, fp32 sums, denormals are zero
  template <int C, int A, int B>
  static void step() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};
struct dot_u8s8 {  // unsigned weights, signed activations, int32 sums modulo 2^32
  template <int C, int A, int B>
  static void step() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};
struct dot_s8s8 {
  template <int C, int A, int B>
  static void step() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

}  // namespace
}  // namespace lowbit::cpu
