#include "cpu/generic/integer.h"
#include "cpu/avx512_vnni/vectors.h"

namespace lowbit::cpu::avx512_vnni {

lowbit_status integer(const gemm_problem& p) { return cpu::integer<avx512_vectors>(p); }

}  // namespace lowbit::cpu::avx512_vnni
