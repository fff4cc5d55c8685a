#include "gemm/contract.h"

namespace lowbit::cpu::amx {

extern const kernel_row kernels[] = {{}};
extern const int num_kernels = 0;

}  // namespace lowbit::cpu::amx
