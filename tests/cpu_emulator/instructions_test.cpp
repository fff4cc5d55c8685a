// The emulated instructions against their definition in plain C++, and against the processor's own where it has them.
#include "instructions.h"

#include <cmath>
#include <cstring>

#include "dispatch/cpu.h"
#include "formats/numeric.h"
#include "support.h"

namespace {

using namespace lowbit::cpu;

float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
uint32_t float_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}
float flush(float f) { return std::fabs(f) < 0x1p-126f ? std::copysign(0.0f, f) : f; }
float bf16_at(const uint8_t* p) { return flush(bits_to_float(static_cast<uint32_t>(p[0] | p[1] << 8) << 16)); }

void multiply_plainly(dot kind, int columns, tiles& t) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < columns; ++j) {
      uint32_t sum;
      std::memcpy(&sum, t.sums[i] + 4 * j, 4);
      float evens = 0, odds = 0;
      for (int k = 0; k < 16; ++k) {
        const uint8_t *a = t.a + 64 * i + 4 * k, *b = t.b[k] + 4 * j;
        if (kind == dot::bf16) {
          evens = flush(std::fma(bf16_at(a), bf16_at(b), evens));
          odds = flush(std::fma(bf16_at(a + 2), bf16_at(b + 2), odds));
        } else {
          for (int byte = 0; byte < 4; ++byte) {
            const int32_t x = kind == dot::s8s8 ? static_cast<int8_t>(a[byte]) : a[byte];
            sum += static_cast<uint32_t>(x * static_cast<int8_t>(b[byte]));
          }
        }
      }
      if (kind == dot::bf16) sum = float_to_bits(flush(flush(bits_to_float(sum)) + flush(evens + odds)));
      std::memcpy(t.sums[i] + 4 * j, &sum, 4);
    }
}

// Bytes of every kind; as bf16, exponents from `low` to `high`, zeros and denormals between them.
void fill(uint8_t* bytes, int64_t count, dot kind, bool sums, random_source& random) {
  for (int64_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(random.below(256));
  if (kind != dot::bf16) return;
  const int64_t step = sums ? 4 : 2;
  for (int64_t i = 0; i < count; i += step) {
    const bool tiny = random.below(4) == 0;
    const uint32_t exponent = static_cast<uint32_t>(tiny ? random.below(70) : 110 + random.below(30));
    const uint32_t high = static_cast<uint32_t>(bytes[i + step - 1] & 0x80) << 8 | exponent << 7 |
                          (static_cast<uint32_t>(bytes[i + step - 2]) & 0x7f);
    bytes[i + step - 2] = static_cast<uint8_t>(high);
    bytes[i + step - 1] = static_cast<uint8_t>(high >> 8);
  }
}

template <class Multiply>
void compare(const char* name, const Multiply& multiply) {
  random_source random(1);
  for (const dot kind : {dot::bf16, dot::u8s8, dot::s8s8})
    for (int columns = 1; columns <= 16; ++columns)
      for (int round = 0; round < 20; ++round) {
        tiles wanted;
        fill(wanted.a, sizeof wanted.a, kind, false, random);
        fill(wanted.b[0], sizeof wanted.b, kind, false, random);
        fill(wanted.sums[0], sizeof wanted.sums, kind, true, random);
        tiles got = wanted;
        multiply_plainly(kind, columns, wanted);
        multiply(kind, columns, got);
        CHECK(!std::memcmp(got.sums, wanted.sums, sizeof got.sums), "%s, kind %d, %d columns", name,
              static_cast<int>(kind), columns);
      }
}

template <class Dot>
void compare_bytes(const char* name, const Dot& dot_bytes) {
  random_source random(2);
  for (int round = 0; round < 1000; ++round) {
    uint8_t u8[32];
    int8_t s8[32];
    int32_t got[8], wanted[8];
    for (int i = 0; i < 32; ++i) {
      u8[i] = random.of<uint8_t>({0, 1, 127, 128, 255, static_cast<uint8_t>(random.below(256))});
      s8[i] = random.of<int8_t>({-128, -1, 0, 1, 127, static_cast<int8_t>(random.below(256))});
    }
    for (int i = 0; i < 8; ++i) {
      got[i] = static_cast<int32_t>(static_cast<uint32_t>(random.engine()));
      uint32_t sum = static_cast<uint32_t>(got[i]);
      for (int byte = 0; byte < 4; ++byte) sum += static_cast<uint32_t>(u8[4 * i + byte] * s8[4 * i + byte]);
      wanted[i] = static_cast<int32_t>(sum);
    }
    dot_bytes(got, u8, s8);
    CHECK(!std::memcmp(got, wanted, sizeof got), "%s, round %d", name, round);
  }
}

TEST(emulated_tiles_are_the_manual_s) {
  if (!lowbit::cpu_has("avx512f avx512bw avx512dq")) {
    std::printf("  skipped: this processor has no AVX-512\n");
    return;
  }
  compare("emulated", emulated::multiply);
}

TEST(the_processor_s_tiles_are_the_manual_s) {
  if (!lowbit::cpu_has("avx512f amx_tile amx_int8 amx_bf16")) {
    std::printf("  skipped: this processor has no AMX\n");
    return;
  }
  compare("AMX", real::multiply);
}

TEST(emulated_byte_products_are_exact) {
  if (!lowbit::cpu_has("avx2")) {
    std::printf("  skipped: this processor has no AVX2\n");
    return;
  }
  compare_bytes("emulated", emulated::dot_bytes);
}

TEST(the_processor_s_byte_products_are_exact) {
  if (!lowbit::cpu_has("avx_vnni")) {
    std::printf("  skipped: this processor has no AVX-VNNI\n");
    return;
  }
  compare_bytes("AVX-VNNI", real::dot_bytes);
}

}  // namespace
