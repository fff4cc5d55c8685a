// Errors as a code and one sentence; threads as the caller lends them.
#pragma once

#include <cstdint>

#include "formats/numeric.h"

namespace lowbit {

// Keeps the sentence for lowbit_last_error() and returns `status`.
[[gnu::format(printf, 2, 3)]] lowbit_status fail(lowbit_status status, const char* format, ...);
const char* last_error();

LOWBIT_INLINE int num_threads(const lowbit_parallel* parallel) {
  return parallel && parallel->run && parallel->num_threads > 1 ? parallel->num_threads : 1;
}

// body(begin, end) on ranges that cover [0, count).
template <class Body>
LOWBIT_INLINE void parallel_for(const lowbit_parallel* parallel, int64_t count, const Body& body) {
  if (count <= 0) return;
  if (num_threads(parallel) == 1 || count == 1) {
    body(0, count);
    return;
  }
  parallel->run(
      parallel->context, count,
      [](void* arg, int64_t begin, int64_t end) { (*static_cast<const Body*>(arg))(begin, end); },
      const_cast<Body*>(&body));
}

}  // namespace lowbit
