// Weights to codes, as layout/encode.cpp: one division, one rounding to the code grid. A row by a CTA at a time, a byte
// of codes by a thread.
#include "cuda/common/convert.h"
#include "cuda/common/launch.h"
#include "cuda/common/memory.h"
#include "cuda/sm80/weights.h"

namespace lowbit::cuda::sm80 {
namespace {

constexpr int threads = 256;

struct encode_arguments {
  int64_t n, k, group_n, group_k, groups, row_bytes;
  const uint8_t* w;
  int w_dtype;
  const uint8_t* divisor;
  int divisor_dtype;
  int dtype;  // of the quotient
  const uint8_t* zero_points;
  uint8_t* codes;
  int integer_offset;  // 0: no integer format
  float low, high;     // of integer formats
  encoder_table table;
};

LOWBIT_DEVICE float load_float(const uint8_t* data, int64_t i, int dtype) {
  if (dtype == LOWBIT_F32) return global_load<float>(data + i * 4);
  const uint16_t bits = global_load<uint16_t>(data + i * 2);
  return dtype == LOWBIT_F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

LOWBIT_DEVICE float round_to(float x, int dtype) {
  if (dtype == LOWBIT_F16) return f16_to_f32(f32_to_f16(x));
  if (dtype == LOWBIT_BF16) return bf16_to_f32(f32_to_bf16(x));
  return x;
}

// How many values of the table are below x, or give way to the next at the midpoint.
LOWBIT_DEVICE uint32_t nearest_code(const encoder_table& table, float x) {
  if (x != x) x = 0;
  int low = 0, high = table.count - 1;  // the answer is in [low, high]
  while (low < high) {
    const int middle = (low + high) / 2;
    const float midpoint = table.midpoint[middle];
    if (x > midpoint || (x == midpoint && table.tie_up[middle]))
      low = middle + 1;
    else
      high = middle;
  }
  if (table.value[low] == 0) {  // -0 stands before +0: the sign of x decides
    const bool negative = as_u32(x) >> 31;
    if (!negative && low + 1 < table.count && table.value[low + 1] == 0) ++low;
    if (negative && low > 0 && table.value[low - 1] == 0) --low;
  }
  return table.code[low];
}

template <int bits>
LOWBIT_DEVICE uint32_t encode_one(const encode_arguments& a, int64_t row, int64_t k) {
  const int64_t index = row / a.group_n * a.groups + k / a.group_k;
  float x = round_to(divide(load_float(a.w, row * a.k + k, a.w_dtype), load_float(a.divisor, index, a.divisor_dtype)),
                     a.dtype);
  const float zero = a.zero_points ? static_cast<float>(global_load<int8_t>(a.zero_points + index)) : 0.0f;
  if (zero != 0) x = round_to(x + zero, a.dtype);
  if (a.integer_offset == 0) return nearest_code(a.table, x);
  x = x == x ? x : 0;
  x = x > a.low ? x : a.low;
  x = x < a.high ? x : a.high;
  // Two's complement 8-bit codes wrap by themselves; others are stored plus their offset.
  const uint32_t code = static_cast<uint32_t>(round_to_int(x) + (bits < 8 ? a.integer_offset : 0));
  return code & ((1u << bits) - 1);
}

template <int bits>
LOWBIT_KERNEL(threads, 1)
void encode_kernel(const encode_arguments a) {
  constexpr int codes = 8 / bits;  // of a byte
  for (int64_t row = cta_index(); row < a.n; row += num_ctas()) {
    for (int64_t byte = thread_index(); byte < a.row_bytes; byte += threads) {
      uint32_t value = 0;
      LOWBIT_UNROLL
      for (int i = 0; i < codes; ++i)
        if (byte * codes + i < a.k) value |= encode_one<bits>(a, row, byte * codes + i) << (bits * i);
      global_store<uint8_t>(a.codes + row * a.row_bytes + byte, static_cast<uint8_t>(value));
    }
  }
}

}  // namespace

lowbit_status encode(const lowbit_encode_args& args, void* stream) {
  const format_row& format = format_at(args.format);
  encode_arguments a{};
  a.n = args.n;
  a.k = args.k;
  a.group_n = args.group_n;
  a.group_k = args.group_k;
  a.groups = ceil_div(args.k, args.group_k);
  a.row_bytes = ceil_div(args.k * format.bits, 8);
  a.w = static_cast<const uint8_t*>(args.w);
  a.w_dtype = args.w_dtype;
  a.divisor = static_cast<const uint8_t*>(args.divisor);
  a.divisor_dtype = args.divisor_dtype;
  a.dtype = args.w_dtype == args.divisor_dtype ? args.w_dtype : LOWBIT_F32;
  a.zero_points = reinterpret_cast<const uint8_t*>(args.zero_points);
  a.codes = static_cast<uint8_t*>(args.codes);
  a.integer_offset = format.integer_offset;
  a.low = static_cast<float>(format.integer_low());
  a.high = static_cast<float>(format.integer_high());
  if (!format.integer()) a.table = encoder(format).table();
  constexpr int64_t most = 1 << 20;
  launch_shape shape{};
  shape.grid_x = static_cast<int>(args.n < most ? args.n : most);
  shape.threads = threads;
  shape.stream = stream;
  if (format.bits == 2) return launch<encode_kernel<2>>(shape, a);
  if (format.bits == 4) return launch<encode_kernel<4>>(shape, a);
  return launch<encode_kernel<8>>(shape, a);
}

}  // namespace lowbit::cuda::sm80
