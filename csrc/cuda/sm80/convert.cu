// A row by a CTA at a time.
#include "cuda/sm80/convert.h"

#include "cuda/common/convert.h"
#include "cuda/common/launch.h"
#include "cuda/common/memory.h"
#include "gemm/quantize.h"

namespace lowbit::cuda::sm80 {
namespace {

constexpr int threads = 256;

LOWBIT_DEVICE float load_float(const void* x, int64_t i, int dtype) {
  const uint8_t* const data = static_cast<const uint8_t*>(x);
  if (dtype == LOWBIT_F32) return global_load<float>(data + i * 4);
  const uint16_t bits = global_load<uint16_t>(data + i * 2);
  return dtype == LOWBIT_F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

LOWBIT_KERNEL(threads, 1) void round_kernel(const convert_problem a) {
  uint16_t* const out = static_cast<uint16_t*>(a.out);
  for (int64_t row = cta_index(); row < a.m; row += num_ctas())
    for (int64_t k = thread_index(); k < a.k; k += threads)
      global_store<uint16_t>(out + row * a.out_stride + k,
                             f32_to_bf16(load_float(a.x, row * a.x_stride + k, a.x_dtype)));
}

// quantize_value of gemm/activation.h.
LOWBIT_DEVICE int8_t quantize_int8(float x, float inverse, float zero_point) {
  const float q = round_even(x * inverse) + zero_point;
  return static_cast<int8_t>(q < -128.0f ? -128.0f : q > 127.0f ? 127.0f : q == q ? q : 0.0f);
}

LOWBIT_KERNEL(threads, 1) void int8_kernel(const convert_problem a) {
  int8_t* const out = static_cast<int8_t*>(a.out);
  for (int64_t row = cta_index(); row < a.m; row += num_ctas()) {
    const int64_t at = a.num_scales == 1 ? 0 : row;
    const float scale = global_load<float>(a.scale + at), inverse = divide(1.0f, scale);
    const int32_t zero_point = a.zero_point ? global_load<int32_t>(a.zero_point + at) : 0;
    bool nan = false;
    for (int64_t k = thread_index(); k < a.k; k += threads) {
      const float x = load_float(a.x, row * a.x_stride + k, a.x_dtype);
      nan |= x != x;
      global_store<int8_t>(out + row * a.out_stride + k, quantize_int8(x, inverse, static_cast<float>(zero_point)));
    }
    nan = any(nan);
    const uint32_t flags = shared_base();  // a word for each warp
    if (lane_index() == 0) shared_store<uint32_t>(flags + static_cast<uint32_t>(warp_index()) * 4, nan);
    sync_threads();
    if (thread_index() == 0) {
      uint32_t found = 0;
      LOWBIT_UNROLL
      for (uint32_t warp = 0; warp < threads / 32; ++warp) found |= shared_load<uint32_t>(flags + warp * 4);
      global_store<float>(a.row_scale + row, found ? as_float(0x7fc00000u) : scale);
      global_store<int32_t>(a.row_zero_point + row, zero_point);
    }
    sync_threads();
  }
}

LOWBIT_KERNEL(threads, 1) void e4m3_kernel(const convert_problem a) {
  uint8_t* const out = static_cast<uint8_t*>(a.out);
  const int64_t groups = a.group ? ceil_div(a.k, a.group) : 1;
  for (int64_t row = cta_index(); row < a.m; row += num_ctas()) {
    for (int64_t k = thread_index(); k < a.k; k += threads) {
      const int64_t at = a.num_scales == 1 ? 0 : row * groups + (a.group ? k / a.group : 0);
      const float inverse = divide(1.0f, global_load<float>(a.scale + at));
      global_store<uint8_t>(out + row * a.out_stride + k,
                            f32_to_e4m3(load_float(a.x, row * a.x_stride + k, a.x_dtype) * inverse));
    }
  }
}

}  // namespace

lowbit_status convert(const convert_problem& p, void* stream) {
  constexpr int64_t most = 1 << 20;
  launch_shape shape{};
  shape.grid_x = static_cast<int>(p.m < most ? p.m : most);
  shape.threads = threads;
  shape.stream = stream;
  if (p.out_dtype == LOWBIT_I8) {
    shape.shared_bytes = threads / 32 * 4;
    return launch<int8_kernel>(shape, p);
  }
  if (p.out_dtype == LOWBIT_E4M3) return launch<e4m3_kernel>(shape, p);
  return launch<round_kernel>(shape, p);
}

}  // namespace lowbit::cuda::sm80
