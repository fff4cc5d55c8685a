// The threads of NumPy-level calls: a pool of this module's own, as there is no torch to lend its.
#pragma once

#include "lowbit/lowbit.h"

namespace lowbit_python {

// num_threads 0: as many as this process may run on. The pool grows to what was asked for and sleeps between calls.
// Any number of threads may use it at once; a child of fork() starts with a new one.
lowbit_parallel threads(int num_threads);

}  // namespace lowbit_python
