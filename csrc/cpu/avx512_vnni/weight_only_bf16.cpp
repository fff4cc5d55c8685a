#include "cpu/avx512_vnni/bf16.h"
#include "cpu/generic/weight_only.h"

namespace lowbit::cpu::avx512_vnni {

lowbit_status weight_only_bf16(const gemm_problem& p) { return weight_only<bf16_arithmetic>(p); }

}  // namespace lowbit::cpu::avx512_vnni
