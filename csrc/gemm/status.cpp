#include "gemm/status.h"

#include <cstdarg>
#include <cstdio>

namespace lowbit {

static thread_local char sentence[512] = "";

lowbit_status fail(lowbit_status status, const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(sentence, sizeof sentence, format, args);
  va_end(args);
  return status;
}

const char* last_error() { return sentence; }

}  // namespace lowbit
