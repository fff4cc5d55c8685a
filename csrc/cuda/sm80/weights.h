// Weights in device memory: canonical form, packed form, floats. The same bits as the host's functions of
// layout/packed.h and layout/fragments.h give. The edge has checked every description; values are taken as they are.
#pragma once

#include "layout/fragments.h"

namespace lowbit::cuda::sm80 {

lowbit_status pack(const lowbit_weight& weight, void* packed, void* stream);
lowbit_status unpack(const lowbit_weight& weight, const void* packed, const lowbit_weight_arrays& out, void* stream);
lowbit_status dequantize_packed(const lowbit_weight& weight, const void* packed, void* out, int dtype, void* stream);
lowbit_status dequantize(const lowbit_weight& weight, void* out, int dtype, void* stream);
lowbit_status encode(const lowbit_encode_args& args, void* stream);

}  // namespace lowbit::cuda::sm80
