// AMX in named one-liners (Intel SDM vol. 2, "Intel AMX Instruction Set Reference"). Tiles are named by use:
// sums C 0-3, weights A 4-5, activations B 6-7. The compiler's own intrinsics take literals only.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

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

// f(integral_constant<int, 0>) ... f(integral_constant<int, Count - 1>), for tile numbers.
template <int I>
struct tile_index {
  static constexpr int value = I;
};
template <int Count, int I = 0, class F>
inline void for_tiles(const F& f) {
  if constexpr (I < Count) {
    f(tile_index<I>{});
    for_tiles<Count, I + 1>(f);
  }
}

// On Sapphire Rapids the first tilestored after some 20 steps without one stalls for about 300 ns, however little it
// stores; one every 16 steps keeps them all at 14 ns. Measured for a 2 x 2 block of 64 steps from L2: 58 % of the peak
// without these, 69 % with them.
constexpr int64_t store_interval = 16;
inline void keep_stores_cheap() {
  alignas(64) uint8_t nowhere[1024];
  tile_store<weight_tile>(nowhere, 64);
}

// Lines that the next tiles will be read from, asked for into L2 beside the multiplications: so many each step.
struct lookahead {
  const uint8_t* data = nullptr;
  int64_t lines = 0;
  void step(int64_t s) const {
    for (int64_t i = s * lines; i < (s + 1) * lines; ++i) _mm_prefetch(data + i * 64, _MM_HINT_T1);
  }
};

// Sums of NT panels x MT activation tiles over `steps` steps of 64 bytes.
//   weights[i]       A tiles of panel i: step s at + s * weight_stride, 16 rows of 64 bytes
//   activations[j]   B tiles of activation tile j: step s at + s * activation_stride, 16 rows of `row_bytes`
template <class Dot, int NT, int MT>
inline void multiply(const uint8_t* const weights[NT], int64_t weight_stride, const uint8_t* const activations[MT],
                     int64_t activation_stride, int64_t row_bytes, int64_t steps, lookahead next = {}) {
  for (int64_t s = 0; s < steps; ++s) {
    next.step(s);
    if (s % store_interval == store_interval - 1) keep_stores_cheap();
    for_tiles<NT>([&](auto i) {
      constexpr int a = weight_tile + i.value % 2;
      tile_load<a>(weights[i.value] + s * weight_stride, 64);
      for_tiles<MT>([&](auto j) {
        if constexpr (i.value == 0)
          tile_load<activation_tile + j.value>(activations[j.value] + s * activation_stride, row_bytes);
        Dot::template step<i.value * MT + j.value, a, activation_tile + j.value>();
      });
    });
  }
}

template <int Count>
inline void zero_sums() {
  for_tiles<Count>([](auto t) { tile_zero<t.value>(); });
}
// Sums lie in memory tile after tile, each 16 rows (outputs) of 64 bytes (activation rows).
template <int Count>
inline void load_sums(const void* sums) {
  for_tiles<Count>([&](auto t) { tile_load<t.value>(static_cast<const uint8_t*>(sums) + t.value * 1024, 64); });
}
template <int Count>
inline void store_sums(void* sums) {
  for_tiles<Count>([&](auto t) { tile_store<t.value>(static_cast<uint8_t*>(sums) + t.value * 1024, 64); });
}

}  // namespace
}  // namespace lowbit::cpu
