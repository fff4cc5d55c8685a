// fp8 on sm_90: e4m3 x e4m3, by token and channel or in blocks of 1 x 128 and 128 x 128.
#include "cuda/sm90/byte_x.h"
#include "cuda/sm90/host.h"

namespace lowbit::cuda::sm90 {
namespace {

template <int Consumers, int Columns, int Stages, int Cluster>
using fp8_tile = tile<e4m3_t, 1, 8, Consumers, Columns, Stages, Cluster>;

// The sums of a promoted tile take twice the registers.
using fast_16 = fp8_tile<1, 16, 16, 1>;
using fast_64 = fp8_tile<1, 64, 12, 1>;
using fast_128_64 = fp8_tile<1, 128, 8, 2>;
using fast_128 = fp8_tile<2, 128, 6, 2>;
using fast_256 = fp8_tile<2, 256, 4, 2>;
using fast_256_in_turns = tile<e4m3_t, 1, 8, 2, 256, 5, 2, 0, schedule::in_turns>;
using promoted_16 = fast_16;
using promoted_64 = fast_64;
using promoted_128_64 = fast_128_64;
using promoted_128 = fast_128;

const char* common_refusal(const gemm_problem& p) {
  if (p.x_dtype != LOWBIT_E4M3) return "x is not e4m3";
  return nullptr;
}

template <class T, bool blocks>
lowbit_status run(const gemm_problem& p, const device_info& device) {
  byte_x_arguments a{};
  if (const lowbit_status status = make_operands<T>(p, &a.in)) return status;
  fp8_scales<T>(p, &a);
  return launch<byte_x_kernel<T, load_bytes, float, blocks>>(shape_of_launch<T>(a.in, p, device), a);
}

template <class T>
const char* refuses_fast(const gemm_problem& p, const device_info& device) {
  if (const char* reason = common_refusal(p)) return reason;
  if (p.accumulate == accumulation::promoted) return "sums are to be promoted to fp32 every 128 columns";
  if (fp8_in_blocks(p)) return "scales change along K";
  return model_refusal<T, fast_16, fast_64, fast_128_64, fast_128, fast_256, fast_256_in_turns>(p, device);
}

template <class T>
const char* refuses_blocks(const gemm_problem& p, const device_info& device) {
  if (const char* reason = common_refusal(p)) return reason;
  if (const char* reason = fp8_blocks_refusal(p)) return reason;
  return model_refusal<T, promoted_16, promoted_64, promoted_128_64, promoted_128>(p, device, fp8_promotion(p));
}

template <class T, bool blocks>
constexpr kernel_row row(const char* name) {
  return {name,
          LOWBIT_FP8,
          90,
          90,
          bit(recipe::minifloat),
          bit(LOWBIT_E4M3),
          T::columns,
          T::strips * 64,
          T::stage_k,
          true,
          blocks ? refuses_blocks<T> : refuses_fast<T>,
          gather_workspace<1>,
          run<T, blocks>};
}

}  // namespace

extern const kernel_row fp8_rows[] = {
    row<fast_16, false>("fp8_fast_sm90_16x64"),
    row<fast_64, false>("fp8_fast_sm90_64x64"),
    row<fast_128_64, false>("fp8_fast_sm90_128x64"),
    row<fast_128, false>("fp8_fast_sm90_128x128"),
    row<fast_256, false>("fp8_fast_sm90_256x128"),
    row<fast_256_in_turns, false>("fp8_fast_sm90_256x64_in_turns"),
    row<promoted_16, true>("fp8_promoted_sm90_16x64"),
    row<promoted_64, true>("fp8_promoted_sm90_64x64"),
    row<promoted_128_64, true>("fp8_promoted_sm90_128x64"),
    row<promoted_128, true>("fp8_promoted_sm90_128x128"),
};
extern const int num_fp8_rows = sizeof fp8_rows / sizeof fp8_rows[0];

}  // namespace lowbit::cuda::sm90
