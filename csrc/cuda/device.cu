#include "cuda/device.h"

#include "cuda/common/host.h"

namespace lowbit::cuda {
namespace {

constexpr int max_devices = 64;

struct device_table {
  const char* problem;
  int count = 0;
  device rows[max_devices];

  device_table() {
    int found = 0;
    problem = runtime_problem(&found);
    for (int i = 0; i < found && i < max_devices; ++i, ++count) {
      if (!read_device(i, &rows[i])) {
        problem = "the CUDA runtime does not describe its devices";
        count = 0;
        return;
      }
    }
  }
};

const device_table& table() {
  static const device_table devices;
  return devices;
}

}  // namespace

const char* problem() { return table().problem; }
int num_devices() { return table().count; }
const device& device_at(int index) { return table().rows[index]; }
int current_device() {
  const int index = table().count ? current_device_index() : -1;
  return index < table().count ? index : -1;
}

}  // namespace lowbit::cuda
