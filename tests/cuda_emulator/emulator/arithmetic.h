// Sums of products as a tensor core makes them.
//
// PTX (9.7.14.5.14) asks for at least single precision and leaves order and rounding open. Here: 16-bit and, by
// default, 8-bit floats are summed in double precision, products and accumulator of one instruction, and rounded once.
// What the chips do differs in the last bits; the conformance test measures it where there is a chip. For e4m3 on
// Hopper, measurements that others published (DeepSeek-V3 report, section 3.3.2) say that addends are aligned to the
// largest and lose what is beyond 14 bits: fp8_sums::truncated models that. It has not been verified on hardware here.
#pragma once

#include <cstdint>

#include "emulator/emulator.h"
#include "emulator/operations.h"

namespace emulator {

// Value of an element of this type, from its bits.
double value_of(element type, uint32_t bits);

// c[m][n] += sum over k of a[m][k] b[n][k]; row r of a starts at a + r * depth, of b at b + r * depth.
void multiply_rows(float* c, const double* a, const double* b, int rows, int columns, int depth, bool truncated);
void multiply_rows(int32_t* c, const int8_t* a, const int8_t* b, int rows, int columns, int depth);

}  // namespace emulator
