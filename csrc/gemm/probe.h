// What a level's probe is: its multiply instruction on registers and nothing else, so that no kernel of the level can
// be faster. Kernels are judged as a percentage of it.
#pragma once

#include <cstdint>

namespace lowbit {

struct probe_row {
  const char* what;                 // "f32", "bf16" or "int8": the type of the factors
  const char* features;             // CPU features it needs beyond its level's, or ""
  double operations;                // of one iteration; a multiply-add counts two
  void (*run)(int64_t iterations);  // on the calling thread
};

}  // namespace lowbit
