// Activation quantizers on CUDA: see gemm/quantize.h for what they give, to the bit.
#pragma once

#include "gemm/quantize.h"

namespace lowbit::cuda::sm80 {

// Pointers are device memory. The caller has called check_quantize.
lowbit_status quantize(const quantize_problem& problem, void* stream);

}  // namespace lowbit::cuda::sm80
