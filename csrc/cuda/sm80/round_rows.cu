// fp32 activations in bf16: a row by a CTA at a time.
#include "cuda/common/launch.h"
#include "cuda/common/memory.h"
#include "cuda/sm80/weights.h"

namespace lowbit::cuda::sm80 {
namespace {

constexpr int threads = 256;

struct round_arguments {
  const float* x;
  uint16_t* out;
  int64_t m, k, x_stride, out_stride;
};

LOWBIT_KERNEL(threads, 1) void round_rows_kernel(const round_arguments a) {
  for (int64_t row = cta_index(); row < a.m; row += num_ctas())
    for (int64_t k = thread_index(); k < a.k; k += threads)
      global_store(a.out + row * a.out_stride + k, f32_to_bf16(global_load<float>(a.x + row * a.x_stride + k)));
}

}  // namespace

lowbit_status round_rows(const void* x, int64_t x_stride, int64_t m, int64_t k, void* out, int64_t out_stride,
                         void* stream) {
  constexpr int64_t most = 1 << 20;
  launch_shape shape{};
  shape.grid_x = static_cast<int>(m < most ? m : most);
  shape.threads = threads;
  shape.stream = stream;
  return launch<round_rows_kernel>(
      shape, round_arguments{static_cast<const float*>(x), static_cast<uint16_t*>(out), m, k, x_stride, out_stride});
}

}  // namespace lowbit::cuda::sm80
