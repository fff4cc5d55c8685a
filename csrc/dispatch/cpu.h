// What this processor can do, and the kernels of each level.
#pragma once

#include "gemm/contract.h"

namespace lowbit {

struct cpu_isa {
  const char* name;
  const char* features;  // space separated, all needed
  const kernel_row* kernels;
  int num_kernels;
};

int num_cpu_isas();
const cpu_isa& cpu_isa_at(int index);  // worst first
bool cpu_has(const char* features);    // every one of a space separated list
bool cpu_isa_supported(int index);
int current_cpu_isa();
lowbit_status set_cpu_isa(int index);
const char* cpu_feature_list();

// Why `row` of level `isa` does not run this problem here, or null if it does.
const char* refusal(int isa, const kernel_row& row, const lowbit_problem& problem);
// The best kernel, or null.
const kernel_row* select_kernel(const lowbit_problem& problem);

}  // namespace lowbit
