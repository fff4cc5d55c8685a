// The loop of every register probe: twelve independent chains of one multiply-add instruction. Twelve covers the
// longest latency times the number of units that the instructions here have (5 cycles x 2 for VPDPBUSD) and leaves
// the four of AVX2's sixteen registers that the factors need.
#pragma once

#include <cstdint>

namespace lowbit::cpu {
namespace {

constexpr int probe_chains = 12;

// Makes the compiler believe that `value` is needed, and that it has changed.
template <class Vector>
inline __attribute__((always_inline)) void opaque(Vector& value) {
#if defined(__x86_64__)
  __asm__ volatile("" : "+v"(value));
#else
  __asm__ volatile("" : "+w"(value));
#endif
}

// step(sum) adds one product to a register of sums.
template <class Vector, class Step>
inline __attribute__((always_inline)) void probe_loop(int64_t iterations, const Vector& start, const Step& step) {
  Vector s0 = start, s1 = start, s2 = start, s3 = start, s4 = start, s5 = start;
  Vector s6 = start, s7 = start, s8 = start, s9 = start, s10 = start, s11 = start;
  // Chains that look alike become one.
  opaque(s0), opaque(s1), opaque(s2), opaque(s3), opaque(s4), opaque(s5);
  opaque(s6), opaque(s7), opaque(s8), opaque(s9), opaque(s10), opaque(s11);
  for (int64_t i = 0; i < iterations; ++i) {
    step(s0), step(s1), step(s2), step(s3), step(s4), step(s5);
    step(s6), step(s7), step(s8), step(s9), step(s10), step(s11);
  }
  opaque(s0), opaque(s1), opaque(s2), opaque(s3), opaque(s4), opaque(s5);
  opaque(s6), opaque(s7), opaque(s8), opaque(s9), opaque(s10), opaque(s11);
}

}  // namespace
}  // namespace lowbit::cpu
