// Activations to low precision, row by row, alone or behind what models do just before: on the CPU (the plain
// reference) and on CUDA (cuda/sm80/quantize.h), from the same description.
//
//   v[m][k] = x                                             activation_source::plain
//           = (s * 1 / sqrt(mean(s^2) + epsilon)) * weight  rms_norm, s = x, or x + residual rounded to x's dtype
//           = (x / (1 + exp(-x))) * up                      silu_mul
//
// in fp32, not rounded before it is quantized, every operation rounded, in one order (norm_lanes, exp_of). With
// max over a row or a block, and q = to_q(v * inverse), to nearest even, saturating:
//
//   int8              int8, fp32 scale and int32 zero point of a row: gemm/activation.h to the bit
//   int8_asymmetric
//   e4m3              scale = max|v| / 448, inverse = 448 / max|v| of a row
//   e4m3_block        the same for every 128 columns; power_of_two: scale = the least power of two that is not below
//                     max|v| / 448, inverse = 1 / scale
//   mxfp8, mxfp4      e8m0 for every 32 columns: OCP MX v1.0 section 6.3, floor(log2(max|v|)) - emax (8 for e4m3, 2 for
//                     e2m1), clamped to 2^-127 .. 2^127; elements above the largest number saturate
//   nvfp4             e4m3 for every 16 columns: scale = to_e4m3(global * (max|v| / 6)), inverse = global / scale
//
// A row or block of zeros, or one too small for its reciprocal, has scale 0 (mx: 2^-127) and codes of 0. One with a NaN
// or an infinity has scale NaN (int8: as gemm/activation.h) and codes of 0. 4-bit codes lie two to a byte, the first in
// the low half; what is behind an odd k is 0. global = 448 * 6 / max|tensor|, as NVIDIA defines it, makes the best of
// nvfp4; W's and x's own divide the product again.
#pragma once

#include "gemm/activation.h"
#include "gemm/status.h"
#include "layout/packed.h"

namespace lowbit {

enum class activation_format : int32_t { int8, int8_asymmetric, e4m3, e4m3_block, mxfp8, mxfp4, nvfp4 };
enum class activation_source : int32_t { plain, rms_norm, silu_mul };

struct activation_format_row {
  const char* name;
  int bits;
  int block;        // columns that share a scale; 0: all of a row
  int scale_dtype;  // F32, E8M0, E4M3
};
inline constexpr activation_format_row activation_formats[] = {
    {"int8", 8, 0, LOWBIT_F32},     {"int8_asymmetric", 8, 0, LOWBIT_F32},
    {"fp8_e4m3", 8, 0, LOWBIT_F32}, {"fp8_e4m3_block", 8, 128, LOWBIT_F32},
    {"mxfp8", 8, 32, LOWBIT_E8M0},  {"mxfp4", 4, 32, LOWBIT_E8M0},
    {"nvfp4", 4, 16, LOWBIT_E4M3},
};
inline constexpr int num_activation_formats = sizeof activation_formats / sizeof activation_formats[0];

constexpr const activation_format_row& describe(activation_format f) { return activation_formats[static_cast<int>(f)]; }

// Pointers are of the device that runs it. Strides are between rows, in elements of their array unless stated.
struct quantize_problem {
  activation_format format;
  activation_source source;
  bool power_of_two;  // e4m3_block
  bool swizzled;      // mxfp8, mxfp4, nvfp4: scales in the order of swizzled_scale, padded rows and columns set to 0
  int64_t m, k;
  const void* x;  // [m][k] F32, F16, BF16
  int x_dtype;
  int64_t x_stride;
  const void* other;  // of x's dtype. silu_mul: up; rms_norm: residual, or null
  int64_t other_stride;
  const void* weight;  // rms_norm: [k], or null: 1
  int weight_dtype;
  float epsilon;
  void* sum;  // rms_norm with a residual: x + residual in x's dtype, or null; may be `other`
  int64_t sum_stride;
  const float* global_scale;  // nvfp4: [1], or null: 1
  void* q;                    // [m][ceil(k * bits / 8)] bytes
  int64_t q_stride;           // bytes
  void* scales;               // [m] fp32; [m][ceil(k / block)]; or swizzled
  int64_t scale_stride;       // where there are blocks and they are not swizzled
  int32_t* zero_points;       // [m], int8_asymmetric
};

// Block scales as tensor cores of Blackwell read them ("128x4", cuBLAS "block scaling factors layout"): 512 bytes for
// 128 rows x 4 blocks.
LOWBIT_INLINE constexpr int64_t swizzled_scale(int64_t row, int64_t block, int64_t blocks) {
  return (row / 128 * ceil_div(blocks, 4) + block / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + block % 4;
}
LOWBIT_INLINE constexpr int64_t swizzled_scale_bytes(int64_t m, int64_t blocks) {
  return ceil_div(m, 128) * ceil_div(blocks, 4) * 512;
}

// Sizes, strides, dtypes and which pointers there must be; a status and its sentence where they cannot be.
lowbit_status check_quantize(const quantize_problem& p);
// On the CPU. The caller has called check_quantize.
lowbit_status quantize(const quantize_problem& p, const lowbit_parallel* parallel);

// From here on: the same bits on every backend. `max` is max|v|, `good`: there is no NaN and no infinity.

LOWBIT_INLINE constexpr uint8_t f32_to_e4m3(float value) {  // saturates; NaN is 0x7f
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu, sign = bits >> 24 & 0x80u;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // 448
  if (magnitude < 0x3c800000u)                                              // 2^-6: fp32 addition rounds at 2^-9
    return static_cast<uint8_t>(sign |
                                (std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 16384.0f) - 0x46800000u));
  return static_cast<uint8_t>(sign | ((magnitude - (120u << 23) + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20));
}
LOWBIT_INLINE constexpr uint8_t f32_to_e2m1(float value) {  // saturates; NaN is 0
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu, sign = bits >> 28 & 8u;
  if (magnitude > 0x7f800000u) return 0;
  if (magnitude >= 0x40c00000u) return static_cast<uint8_t>(sign | 7u);  // 6
  if (magnitude < 0x3f800000u)                                           // 1: fp32 addition rounds at 2^-1
    return static_cast<uint8_t>(sign |
                                (std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 4194304.0f) - 0x4a800000u));
  return static_cast<uint8_t>(sign | ((magnitude - (126u << 23) + 0x1fffffu + (magnitude >> 22 & 1u)) >> 22));
}

// A scale and what values are multiplied by.
struct block_quantization {
  float scale, inverse;
  uint8_t bits;  // of the scale, where it is e8m0 or e4m3
};

inline constexpr float quiet_nan = std::bit_cast<float>(0x7fc00000u);

// fp32 scales of e4m3.
LOWBIT_INLINE constexpr block_quantization e4m3_quantization(float max, bool good, bool power_of_two) {
  if (!good) return {quiet_nan, 0, 0};
  float inverse = 448.0f / max;
  if (!(inverse <= largest_f32)) return {0, 0, 0};
  float scale = max / 448.0f;
  if (power_of_two) {  // the next one that is not below; 2^-126 at least, so that its reciprocal is a float
    uint32_t exponent = (std::bit_cast<uint32_t>(scale) + 0x7fffffu) >> 23;
    if (exponent < 1) exponent = 1;
    scale = std::bit_cast<float>(exponent << 23);
    inverse = std::bit_cast<float>((254u - exponent) << 23);
  }
  return {scale, inverse, 0};
}

// e8m0 scales of elements whose largest power of two is 2^emax.
LOWBIT_INLINE constexpr block_quantization mx_quantization(float max, bool good, int emax) {
  if (!good) return {quiet_nan, 0, 255};
  // A subnormal maximum is below 2^-126: its scale would be below 2^-127.
  const int exponent = static_cast<int>(std::bit_cast<uint32_t>(max) >> 23) - emax;
  const int bits = exponent < 0 ? 0 : exponent;
  return {e8m0_to_f32(static_cast<uint8_t>(bits)), std::bit_cast<float>(static_cast<uint32_t>(254 - bits) << 23),
          static_cast<uint8_t>(bits)};
}

// e4m3 scales of nvfp4.
LOWBIT_INLINE constexpr block_quantization nvfp4_quantization(float max, bool good, float global) {
  if (!good) return {quiet_nan, 0, 0x7f};
  const float scale = global * (max / 6.0f);
  if (scale != scale) return {quiet_nan, 0, 0x7f};
  const uint8_t bits = f32_to_e4m3(scale);
  const float rounded = e4m3.value(bits);
  const float inverse = rounded > 0 ? global / rounded : 0;
  return {rounded, inverse <= largest_f32 ? inverse : 0, bits};
}

// The order in which the squares of a row are added: lane t of 512 takes columns 8 t .. 8 t + 7 of every 4096, the
// lanes of 32 are added in pairs 16, 8, 4, 2, 1 apart, and the 16 sums of them from the first on.
inline constexpr int norm_lanes = 512;
inline constexpr int norm_vector = 8;

// e^x within 2 ulp, of single operations alone: Cephes' reduction by ln 2 in two parts, Taylor's terms to x^7.
LOWBIT_INLINE constexpr float exp_of(float x) {
  if (x != x) return x;
  if (x > 89.0f) return std::numeric_limits<float>::infinity();
  if (x < -104.0f) return 0;
  const float scaled = x * 1.44269504f;
  const int n = static_cast<int>(scaled < 0 ? scaled - 0.5f : scaled + 0.5f);
  const float r = x - static_cast<float>(n) * 0.693359375f + static_cast<float>(n) * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int half = n / 2;  // 2^n itself may be no float
  const float first = std::bit_cast<float>(static_cast<uint32_t>(half + 127) << 23);
  const float second = std::bit_cast<float>(static_cast<uint32_t>(n - half + 127) << 23);
  return p * first * second;
}

LOWBIT_INLINE constexpr float silu_mul(float gate, float up) { return gate / (1.0f + exp_of(-gate)) * up; }

}  // namespace lowbit
