// What the files of the C API share: api.cpp (on the host), api_cuda.cpp (on the device), api_query.cpp (what is here).
#pragma once

#include "formats/format.h"
#include "gemm/quantize.h"
#include "gemm/status.h"
#include "lowbit/lowbit.h"

namespace lowbit::api {

lowbit_status bad_format(lowbit_format format);

// Of a product by a weight of n x k: family, activation, sizes, strides and dtypes. Looks behind no pointer.
lowbit_status check_gemm(const lowbit_gemm_args& args, const format_row& format, int64_t n, int64_t k);
// The epilogue's other tensor: there, and y itself or apart from it.
lowbit_status check_other(const lowbit_gemm_args& args, int64_t n);

lowbit_status gemm_cuda(const lowbit_gemm_args& args);
lowbit_status quantize_cuda(const quantize_problem& problem, void* stream);  // checked

}  // namespace lowbit::api
