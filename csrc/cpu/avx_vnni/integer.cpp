#include "cpu/generic/integer.h"
#include "cpu/avx_vnni/simd.h"

namespace lowbit::cpu::avx_vnni {

lowbit_status integer(const gemm_problem& p) { return cpu::integer<avx_vnni_vectors>(p); }

}  // namespace lowbit::cpu::avx_vnni
