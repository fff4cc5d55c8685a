// What tests of planted bugs share: the emulator must name each bug, and without one pass with any seed.
#pragma once

#include <string>
#include <vector>

#include "cuda/common/convert.h"
#include "cuda/common/launch.h"
#include "emulator/emulator.h"
#include "test.h"

namespace lowbit::cuda {

struct output {
  uint32_t* y;
};

inline std::vector<uint32_t> counted(size_t count) {
  std::vector<uint32_t> v(count);
  for (size_t i = 0; i < count; ++i) v[i] = static_cast<uint32_t>(i * 2654435761u);
  return v;
}

template <auto kernel, class Arguments>
void expect(const launch_shape& shape, const Arguments& arguments, const char* text) {
  const lowbit_status status = launch<kernel>(shape, arguments);
  const std::string& failure = emulator::failure();
  CHECK_EQ(status, LOWBIT_UNSUPPORTED);
  CHECK(failure.find(text) != std::string::npos, "found \"%s\" instead of \"%s\"", failure.c_str(), text);
  // Every report names the kernel.
  CHECK(failure.find("kernel lowbit::cuda::") == 0, "%s", failure.c_str());
}

template <auto kernel, class Arguments>
bool passes(const launch_shape& shape, const Arguments& arguments, uint32_t seed = 0) {
  emulator::options options;
  options.seed = seed;
  const emulator::with with(options);
  CHECK_EQ(launch<kernel>(shape, arguments), LOWBIT_OK);
  CHECK(emulator::failure().empty(), "seed %u: %s", seed, emulator::failure().c_str());
  return emulator::failure().empty();
}

}  // namespace lowbit::cuda
