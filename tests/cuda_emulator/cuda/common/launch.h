// The emulator's side of csrc/cuda/common/launch.h.
#pragma once

#include "cuda/common/device.h"
#include "gemm/status.h"

namespace lowbit::cuda {

struct launch_shape {
  int grid_x, grid_y = 1, grid_z = 1;
  int threads;
  int cluster = 1;
  int64_t shared_bytes = 0;
  void* stream = nullptr;
  bool dependent = false;
};

namespace detail {

template <auto kernel>
std::string kernel_name() {  // "... [with auto kernel = NAME; ...]" (GCC), "... [kernel = &NAME]" (Clang)
  const std::string text = __PRETTY_FUNCTION__;
  const auto mark = text.find("kernel = ");
  const auto first = mark + 9 + (text[mark + 9] == '&');
  const auto last = text.find_first_of(";]", first);
  return text.substr(first, last - first);
}

}  // namespace detail

template <auto kernel, class Arguments>
lowbit_status launch(const launch_shape& shape, const Arguments& arguments) {
  emulator::launch_request request{
      .kernel = detail::kernel_name<kernel>(),
      .call = [](const void* given) { kernel(*static_cast<const Arguments*>(given)); },
      .arguments = &arguments,
      .argument_bytes = sizeof arguments,
      .grid = {shape.grid_x, shape.grid_y, shape.grid_z},
      .threads = shape.threads,
      .cluster = shape.cluster,
      .shared_bytes = shape.shared_bytes,
      .compiled_arch = LOWBIT_DEVICE_ARCH,
  };
  if (emulator::run(request)) return LOWBIT_OK;
  return fail(LOWBIT_UNSUPPORTED, "%s", emulator::failure().c_str());
}

}  // namespace lowbit::cuda
