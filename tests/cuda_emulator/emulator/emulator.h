// CUDA kernels on the CPU, checked at every step: how a test of one is written.
//
//   #include "emulator/emulator.h"          // and "test.h" of tests/cpp
//   #include "cuda/sm80/weight_only.h"      // the kernel's own source; it finds tests/cuda_emulator/cuda/common
//
//   TEST(my_kernel) {
//     emulator::buffer<uint8_t> x(host_bytes);        // device memory with these contents; kernels may not write it
//     emulator::buffer<float> y(m * n);               // unwritten: kernels must write before they read
//     for (uint32_t seed : {0u, 1u, 2u}) {
//       emulator::options options;
//       options.seed = seed;                          // 0: all asynchronous work as late as it can be; others: random
//       emulator::with with(options);                 // until the end of the block
//       CHECK_EQ(launch<my_kernel<config>>({.grid_x = 3, .threads = 128, .shared_bytes = 4096}, {x.data(), y.data()}),
//                LOWBIT_OK);                          // or the run() of a kernel row
//       CHECK(emulator::failure().empty(), "%s", emulator::failure().c_str());
//       y.values();                                   // what the kernel wrote; values nobody wrote are an error
//     }
//   }
//
// launch() returns LOWBIT_UNSUPPORTED when the emulator found an error; failure() has all of its text: kernel, CTA,
// thread, file:line. docs/cuda_emulator.md says what is an error.
//
// Access counts (bank conflicts, sectors of global memory) of each file:line come with expect_counts() or are printed
// at the end of the program with LOWBIT_EMULATOR_COUNTS=1 in the environment. `tests/cuda_emulator/CMakeLists.txt`
// makes a program of every <name>_test.cpp and links every csrc/cuda/**/*.cu into it.
#pragma once

#include <cstdint>
#include <cstring>
#include <source_location>
#include <string>
#include <type_traits>
#include <vector>

namespace emulator {

enum class fp8_sums {
  exact,      // the 32 products and the sum are added exactly and rounded once
  truncated,  // as on Hopper: aligned to the largest, cut to 13 bits behind the point
};

struct options {
  uint32_t seed = 0;
  int arch = 0;       // 80, 89, 90, ...: what the chip can; 0: as compiled
  bool races = true;  // look for them
  bool count = true;  // accesses of the first CTA
  fp8_sums fp8 = fp8_sums::exact;
  int resident = 1 << 20;  // CTAs that fit on the chip at once: others start when one has ended
};

// Options of launches on this thread until the end of the block.
class with {
 public:
  explicit with(const options& wanted);
  ~with();
  with(const with&) = delete;
  with& operator=(const with&) = delete;

 private:
  options before_;
};
const options& current_options();

// What went wrong since this thread's last launch began; empty if nothing did.
const std::string& failure();

// ---- device memory -------------------------------------------------------------------------------------------

void* allocate(size_t bytes);  // 256-byte aligned, unwritten; freed ranges stay errors
void release(void* data);
void upload(void* device, const void* host, size_t bytes);
void download(void* host, const void* device, size_t bytes);  // bytes that nobody wrote are a failure()
void protect(const void* data, bool read_only);
void forget(void* data);  // back to unwritten

template <class T>
class buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit buffer(size_t count) : count_(count), data_(static_cast<T*>(allocate(count * sizeof(T)))) {}
  explicit buffer(const std::vector<T>& values) : buffer(values.data(), values.size()) {}
  buffer(const T* values, size_t count) : buffer(count) {
    set(values, count);
    protect(data_, true);
  }
  ~buffer() { release(data_); }
  buffer(const buffer&) = delete;
  buffer& operator=(const buffer&) = delete;

  T* data() const { return data_; }
  size_t size() const { return count_; }
  void set(const T* values, size_t count) { upload(data_, values, count * sizeof(T)); }
  void fill(const T& value) {
    for (size_t i = 0; i < count_; ++i) upload(data_ + i, &value, sizeof(T));
  }
  void clear() { forget(data_); }
  std::vector<T> values() const {
    std::vector<T> copy(count_);
    download(copy.data(), data_, count_ * sizeof(T));
    return copy;
  }
  // As values(), but what nobody wrote is `missing`.
  std::vector<T> values_or(const T& missing) const;

 private:
  size_t count_;
  T* data_;
};

bool written(const void* device, size_t bytes);

// From now on, memory that allocate() did not give out is device memory that somebody has written: for the library
// that Python's tests run on arrays of their own.
void accept_host_memory();

template <class T>
std::vector<T> buffer<T>::values_or(const T& missing) const {
  std::vector<T> copy(count_, missing);
  for (size_t i = 0; i < count_; ++i)
    if (written(data_ + i, sizeof(T))) download(&copy[i], data_ + i, sizeof(T));
  return copy;
}

// ---- access counts -------------------------------------------------------------------------------------------

enum access_kind { shared_read, shared_write, global_read, global_write, matrix_read, matrix_write, num_access_kinds };

struct access_count {
  std::string kernel, place;  // place: file.h:12
  access_kind kind;
  uint64_t instructions = 0;  // of warps
  uint64_t moved = 0;         // shared: wavefronts; global: 32-byte sectors
  uint64_t needed = 0;        // how few would do
  double ratio() const { return needed ? static_cast<double>(moved) / static_cast<double>(needed) : 1; }
};

// Of all launches so far, in order of kernel and place.
std::vector<access_count> access_counts();
void clear_access_counts();
void print_access_counts();
// The first site whose moved / needed is above the bound for its kind (shared and matrices, global), as text, or "".
std::string worse_than(double shared_bound, double global_bound, const char* kernel_contains = "");

// ---- what launch.h calls ---------------------------------------------------------------------------------------

struct launch_request {
  std::string kernel;
  void (*call)(const void* arguments);
  const void* arguments;
  size_t argument_bytes;
  int grid[3];
  int threads, cluster;
  int64_t shared_bytes;
  int compiled_arch;  // LOWBIT_DEVICE_ARCH
};

bool run(const launch_request& request);  // false: failure() tells

}  // namespace emulator
