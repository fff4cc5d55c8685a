// The instructions of csrc/cpu/amx and csrc/cpu/avx_vnni, as functions of one form for two builds of one source.
#pragma once

#include <cstdint>

namespace lowbit::cpu {

enum class dot { bf16, u8s8, s8s8 };

struct tiles {
  alignas(64) uint8_t a[1024];       // 16 rows of 64 bytes
  alignas(64) uint8_t b[16][64];     // rows of 4 * columns bytes
  alignas(64) uint8_t sums[16][64];  // rows of 4 * columns bytes
};

namespace real {
void multiply(dot kind, int columns, tiles& t);
void dot_bytes(int32_t (&sums)[8], const uint8_t (&u8)[32], const int8_t (&s8)[32]);
}  // namespace real
namespace emulated {
void multiply(dot kind, int columns, tiles& t);
void dot_bytes(int32_t (&sums)[8], const uint8_t (&u8)[32], const int8_t (&s8)[32]);
}  // namespace emulated

}  // namespace lowbit::cpu
