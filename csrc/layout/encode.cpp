// Weights to codes: one division, one rounding to the code grid.
#include <cmath>
#include <cstring>

#include "gemm/status.h"
#include "layout/canonical.h"

namespace lowbit {
namespace {

// torch's type promotion among floats: two different 16-bit types meet in fp32.
int promote(int a, int b) { return a == b ? a : LOWBIT_F32; }

float round_to(float x, int dtype) {
  switch (dtype) {
    case LOWBIT_F16:
      return f16_to_f32(f32_to_f16(x));
    case LOWBIT_BF16:
      return bf16_to_f32(f32_to_bf16(x));
    default:
      return x;
  }
}

// Scaled values of one row segment that shares a divisor, rounded as `dtype` would.
template <int Dtype>
void divide(const void* w, int w_dtype, int64_t offset, int64_t count, float divisor, float zero, float* out) {
  switch (w_dtype) {
    case LOWBIT_F32:
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<const float*>(w)[offset + i];
      break;
    case LOWBIT_BF16:
      for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(static_cast<const uint16_t*>(w)[offset + i]);
      break;
    default:
      for (int64_t i = 0; i < count; ++i) out[i] = f16_to_f32(static_cast<const uint16_t*>(w)[offset + i]);
  }
  for (int64_t i = 0; i < count; ++i) out[i] = round_to(out[i] / divisor, Dtype);
  if (zero != 0)
    for (int64_t i = 0; i < count; ++i) out[i] = round_to(out[i] + zero, Dtype);
}

// Nearest integer in [low, high], ties to even; NaN becomes 0.
void round_to_integers(const float* in, int64_t count, float low, float high, float offset, uint8_t* codes) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  for (int64_t i = 0; i < count; ++i) {
    float x = in[i] == in[i] ? in[i] : 0.0f;
    x = x > low ? x : low;
    x = x < high ? x : high;
    codes[i] = static_cast<uint8_t>(std::bit_cast<uint32_t>(x + magic) + static_cast<uint32_t>(offset));
  }
}

}  // namespace

lowbit_status check_encode(const lowbit_encode_args& a) {
  lowbit_weight description{};
  description.format = a.format;
  description.n = a.n;
  description.k = a.k;
  description.group_n = a.group_n;
  description.group_k = a.group_k;
  description.zero_points = a.zero_points;
  description.global_scale = 1;
  if (a.format >= 0 && a.format < num_formats()) {
    const scale_rule rule = format_at(a.format).scale;
    description.scale_dtype = rule == scale_rule::any_float ? LOWBIT_F32 : static_cast<lowbit_dtype>(rule);
  }
  if (const lowbit_status status = check_weight_description(description)) return status;
  if (!is_float_dtype(a.w_dtype) || !is_float_dtype(a.divisor_dtype))
    return fail(LOWBIT_INVALID_TYPE, "weights are %s, divisors %s: each must be float32, float16 or bfloat16",
                dtype_name(a.w_dtype), dtype_name(a.divisor_dtype));
  return LOWBIT_OK;
}

lowbit_status encode(const lowbit_encode_args& a, const lowbit_parallel* parallel) {
  if (const lowbit_status status = check_encode(a)) return status;
  const format_row& format = format_at(a.format);
  const int dtype = promote(a.w_dtype, a.divisor_dtype);
  const auto divide_as = dtype == LOWBIT_F32   ? divide<LOWBIT_F32>
                         : dtype == LOWBIT_F16 ? divide<LOWBIT_F16>
                                               : divide<LOWBIT_BF16>;
  const encoder nearest(format);
  const int64_t groups = ceil_div(a.k, a.group_k), row_bytes = ceil_div(a.k * format.bits, 8);
  // two's complement 8-bit codes wrap by themselves; narrower ones are stored plus their offset
  const float offset = format.bits < 8 ? static_cast<float>(format.integer_offset) : 0.0f;
  const float low = static_cast<float>(format.integer_low()), high = static_cast<float>(format.integer_high());

  parallel_for(parallel, a.n, [&](int64_t begin, int64_t end) {
    constexpr int64_t step = 512;
    float scaled[step];
    uint8_t codes[step];
    for (int64_t n = begin; n < end; ++n) {
      uint8_t* row = static_cast<uint8_t*>(a.codes) + n * row_bytes;
      std::memset(row, 0, static_cast<size_t>(row_bytes));
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t index = n / a.group_n * groups + g;
        const float divisor = load_as_f32(a.divisor, index, a.divisor_dtype);
        const float zero = a.zero_points ? static_cast<float>(a.zero_points[index]) : 0.0f;
        const int64_t last = (g + 1) * a.group_k < a.k ? (g + 1) * a.group_k : a.k;
        for (int64_t k = g * a.group_k; k < last; k += step) {
          const int64_t count = last - k < step ? last - k : step;
          divide_as(a.w, a.w_dtype, n * a.k + k, count, divisor, zero, scaled);
          if (format.integer())
            round_to_integers(scaled, count, low, high, offset, codes);
          else
            for (int64_t i = 0; i < count; ++i) codes[i] = nearest(scaled[i]);
          if (format.bits == 8)
            std::memcpy(row + k, codes, static_cast<size_t>(count));
          else if (format.bits == 4 && k % 2 == 0 && count % 2 == 0)
            for (int64_t i = 0; i < count; i += 2)
              row[(k + i) / 2] = static_cast<uint8_t>(codes[i] | codes[i + 1] << 4);
          else
            for (int64_t i = 0; i < count; ++i) add_canonical_code(row, format.bits, k + i, codes[i]);
        }
      }
    }
  });
  return LOWBIT_OK;
}

}  // namespace lowbit
