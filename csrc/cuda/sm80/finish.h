// The epilogue of a product (gemm/epilogue.h), behind any kernel: it leaves sums with bias in fp32, this makes y of
// them.
#pragma once

#include "gemm/epilogue.h"
#include "gemm/status.h"

namespace lowbit::cuda::sm80 {

struct finish_problem {
  int64_t m, n;
  const float* sums;  // [m][n]; may be y
  int64_t sums_stride;
  void* y;  // [m][n]; may be epilogue.other
  int y_dtype;
  int64_t y_stride;
  epilogue_terms epilogue;
};

lowbit_status finish(const finish_problem& problem, void* stream);

}  // namespace lowbit::cuda::sm80
