// Arrays of any library: NumPy's, those with __dlpack__ (CPU), and plain buffers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "lowbit/lowbit.h"

namespace lowbit_python {

namespace py = pybind11;

// An array to read. Row-major with no gaps, but for rows_only arrays, whose rows may lie apart.
struct array {
  std::string name;  // of the argument, for messages
  py::object owner;
  const void* data;
  std::string dtype;  // "float32", ...
  std::vector<int64_t> shape;
  int64_t row_stride;  // elements between rows of a matrix

  int64_t size() const;
  void expect_dtype(std::initializer_list<const char*> allowed) const;
  void expect_dimensions(size_t wanted) const;
  void expect_shape(const std::vector<int64_t>& wanted) const;
  lowbit_dtype float_dtype() const;  // float32, float16 or bfloat16
};

array read(const py::object& object, const char* name, bool rows_only = false);
std::optional<array> read_optional(const py::object& object, const char* name);
// An array in the memory of a CUDA device, through DLPack; its owner has made it ready for work on `stream`. A build
// that emulates CUDA, for tests, takes those of the CPU.
array read_cuda(const py::object& object, const char* name, intptr_t stream, bool rows_only = false);

// A new NumPy array. bfloat16 needs the package ml_dtypes.
py::array empty(const std::vector<int64_t>& shape, const std::string& dtype);

const char* dtype_name(lowbit_dtype dtype);
lowbit_dtype dtype_called(const std::string& name, const char* argument);

}  // namespace lowbit_python
