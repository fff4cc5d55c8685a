// An output by a thread, 256 of a row by a CTA at a time.
#include "cuda/sm80/finish.h"

#include "cuda/common/launch.h"
#include "cuda/generic/epilogue.h"
#include "layout/packed.h"

namespace lowbit::cuda::sm80 {
namespace {

constexpr int threads = 256;

LOWBIT_KERNEL(threads, 1) void finish_kernel(const finish_problem a) {
  const int64_t blocks = ceil_div(a.n, threads);
  for (int64_t i = cta_index(); i < a.m * blocks; i += num_ctas()) {
    const int64_t m = i / blocks, n = i % blocks * threads + thread_index();
    if (n >= a.n) continue;
    const epilogue_terms& e = a.epilogue;
    float y = apply(e.function, global_load<float>(a.sums + m * a.sums_stride + n));
    if (e.combination) y = combine(e.combination, y, load_float(e.other, m * e.other_stride + n, e.other_dtype));
    const int64_t at = m * a.y_stride + n;
    if (a.y_dtype == LOWBIT_F32)
      global_store<float>(static_cast<float*>(a.y) + at, y);
    else
      global_store<uint16_t>(static_cast<uint16_t*>(a.y) + at, static_cast<uint16_t>(pack_pair(y, y, a.y_dtype)));
  }
}

}  // namespace

lowbit_status finish(const finish_problem& p, void* stream) {
  constexpr int64_t most = 1 << 20;
  const int64_t blocks = p.m * ceil_div(p.n, threads);
  launch_shape shape{};
  shape.grid_x = static_cast<int>(blocks < most ? blocks : most);
  shape.threads = threads;
  shape.stream = stream;
  return launch<finish_kernel>(shape, p);
}

}  // namespace lowbit::cuda::sm80
