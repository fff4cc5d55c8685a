// csrc/cpu/amx/instructions.h in AVX-512: what the operation sections of Intel's SDM vol. 2 say, tile registers in
// memory of the thread. What would fault, or read what no load or product wrote, is told and aborts. Tile loads and
// stores are accesses that AddressSanitizer sees.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace lowbit::cpu {
namespace {

constexpr int weight_tile = 4, activation_tile = 6;

struct alignas(64) tile_register {
  uint8_t bytes[16][64];
  int bytes_per_row = 0;  // 0: not configured
  bool written = false;
};
thread_local tile_register tile_registers[8];

inline void require_tile(bool condition, const char* instruction, int tile, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s, tile %d: %s\n", instruction, tile, what);
  std::abort();
}

class tile_scope {
 public:
  explicit tile_scope(int columns) {
    require_tile(columns >= 1 && columns <= 16, "ldtilecfg", 0, "1 to 16 columns");
    for (int t = 0; t < 8; ++t) {
      require_tile(tile_registers[t].bytes_per_row == 0, "ldtilecfg", t, "configured twice");
      std::memset(tile_registers[t].bytes, 0, sizeof tile_registers[t].bytes);
      tile_registers[t].bytes_per_row = t / 2 == weight_tile / 2 ? 64 : 4 * columns;
      tile_registers[t].written = false;
    }
  }
  ~tile_scope() {
    for (tile_register& t : tile_registers) t.bytes_per_row = 0;
  }
  tile_scope(const tile_scope&) = delete;
  tile_scope& operator=(const tile_scope&) = delete;
};

template <int T>
inline tile_register& configured(const char* instruction) {
  static_assert(T >= 0 && T < 8);
  require_tile(tile_registers[T].bytes_per_row != 0, instruction, T, "not configured");
  return tile_registers[T];
}
template <int T>
inline tile_register& written(const char* instruction) {
  tile_register& t = configured<T>(instruction);
  require_tile(t.written, instruction, T, "read, but nothing was loaded or zeroed");
  return t;
}

template <int T>
inline void tile_zero() {
  tile_register& t = configured<T>("tilezero");
  std::memset(t.bytes, 0, sizeof t.bytes);
  t.written = true;
}
template <int T>
inline void tile_load(const void* data, int64_t stride) {
  tile_register& t = configured<T>("tileloadd");
  for (int row = 0; row < 16; ++row)
    std::memcpy(t.bytes[row], static_cast<const uint8_t*>(data) + row * stride, static_cast<size_t>(t.bytes_per_row));
  t.written = true;
}
template <int T>
inline void tile_store(void* data, int64_t stride) {
  const tile_register& t = configured<T>("tilestored");
  for (int row = 0; row < 16; ++row)
    std::memcpy(static_cast<uint8_t*>(data) + row * stride, t.bytes[row], static_cast<size_t>(t.bytes_per_row));
}

// Row i of C (16 int32 or fp32) from row i of A and all rows of B, four bytes of k each.
template <int C, int A, int B, class Row>
inline void multiply_tiles(const char* instruction, const Row& row) {
  tile_register& c = written<C>(instruction);
  const tile_register &a = written<A>(instruction), &b = written<B>(instruction);
  require_tile(a.bytes_per_row == 64 && b.bytes_per_row == c.bytes_per_row, instruction, C, "shapes that do not match");
  static_assert(A != B && A != C && B != C);
  for (int i = 0; i < 16; ++i) {
    __m512i factors[16];
    for (int k = 0; k < 16; ++k) {
      int32_t four;
      std::memcpy(&four, a.bytes[i] + 4 * k, 4);
      factors[k] = _mm512_set1_epi32(four);
    }
    _mm512_store_si512(c.bytes[i], row(_mm512_load_si512(c.bytes[i]), factors, b));
  }
}

// TDPBF16PS: even and odd k are summed apart from zero by fused multiply-adds, then added, then added to C. Denormal
// factors, sums and results are zero.
struct dot_bf16 {
  static __m512 flush(__m512 v) {
    const __mmask16 denormal = _mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(0x1p-126f), _CMP_LT_OQ);
    return _mm512_castsi512_ps(
        _mm512_mask_and_epi32(_mm512_castps_si512(v), denormal, _mm512_castps_si512(v), _mm512_set1_epi32(INT32_MIN)));
  }
  static __m512 even(__m512i pairs) { return flush(_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))); }
  static __m512 odd(__m512i pairs) {
    return flush(_mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(INT32_MIN >> 15))));
  }
  template <int C, int A, int B>
  static void step() {
    multiply_tiles<C, A, B>("tdpbf16ps", [](__m512i sums, const __m512i(&a)[16], const tile_register& b) {
      __m512 evens = _mm512_setzero_ps(), odds = _mm512_setzero_ps();
      for (int k = 0; k < 16; ++k) {
        const __m512i pairs = _mm512_load_si512(b.bytes[k]);
        evens = flush(_mm512_fmadd_ps(even(a[k]), even(pairs), evens));
        odds = flush(_mm512_fmadd_ps(odd(a[k]), odd(pairs), odds));
      }
      return _mm512_castps_si512(
          flush(_mm512_add_ps(flush(_mm512_castsi512_ps(sums)), flush(_mm512_add_ps(evens, odds)))));
    });
  }
};

// TDPBUSD and TDPBSSD: sums modulo 2^32.
template <int C, int A, int B, bool SignedA>
inline void multiply_bytes(const char* instruction) {
  multiply_tiles<C, A, B>(instruction, [](__m512i sums, const __m512i(&a)[16], const tile_register& b) {
    for (int k = 0; k < 16; ++k) {
      const __m512i codes = _mm512_load_si512(b.bytes[k]);
      const __m512i low_a =
          SignedA ? _mm512_srai_epi16(_mm512_slli_epi16(a[k], 8), 8) : _mm512_and_si512(a[k], _mm512_set1_epi16(255));
      const __m512i high_a = SignedA ? _mm512_srai_epi16(a[k], 8) : _mm512_srli_epi16(a[k], 8);
      sums = _mm512_add_epi32(sums, _mm512_madd_epi16(low_a, _mm512_srai_epi16(_mm512_slli_epi16(codes, 8), 8)));
      sums = _mm512_add_epi32(sums, _mm512_madd_epi16(high_a, _mm512_srai_epi16(codes, 8)));
    }
    return sums;
  });
}
struct dot_u8s8 {
  template <int C, int A, int B>
  static void step() {
    multiply_bytes<C, A, B, false>("tdpbusd");
  }
};
struct dot_s8s8 {
  template <int C, int A, int B>
  static void step() {
    multiply_bytes<C, A, B, true>("tdpbssd");
  }
};

}  // namespace
}  // namespace lowbit::cpu
