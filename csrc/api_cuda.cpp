// The C API on CUDA devices: the same checks, less those of values, which stay on the device.
#include "api.h"

#include "dispatch/cuda.h"

using namespace lowbit;
lowbit_status lowbit::api::gemm_cuda(const lowbit_gemm_args&) { return fail(LOWBIT_UNSUPPORTED, "soon"); }
