// Multiply peaks of portable code: what the compiler makes of 16-byte vectors for the baseline processor.
#include "cpu/generic/probe_loop.h"
#include "gemm/probe.h"

namespace lowbit::cpu::scalar {
namespace {

typedef float f32x4 __attribute__((vector_size(16)));
typedef int16_t i16x8 __attribute__((vector_size(16)));

void f32(int64_t iterations) {
  const f32x4 a = {0.5f, 0.5f, 0.5f, 0.5f}, b = {1, 2, 3, 4};
  probe_loop(iterations, b, [&](f32x4& sum) { sum = sum * a + b; });
}

void int8(int64_t iterations) {  // 16-bit lanes hold a product: the narrowest there are everywhere
  const i16x8 a = {3, -5, 7, -9, 11, -13, 15, -17}, b = {1, 2, 3, 4, 5, 6, 7, 8};
  probe_loop(iterations, b, [&](i16x8& sum) { sum = sum * a + b; });
}

}  // namespace

extern const probe_row probes[] = {
    {"f32", "", probe_chains * 4 * 2.0, f32},
    {"int8", "", probe_chains * 8 * 2.0, int8},
};
extern const int num_probes = sizeof probes / sizeof probes[0];

}  // namespace lowbit::cpu::scalar
