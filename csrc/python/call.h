// Calling the C API from Python: its status as an exception, its numbers by their names.
#pragma once

#include <string>
#include <vector>

#include "array.h"
#include "lowbit/lowbit.h"

namespace lowbit_python {

inline void check(lowbit_status status) {
  switch (status) {
    case LOWBIT_OK:
      return;
    case LOWBIT_INVALID_TYPE:
      throw py::type_error(lowbit_last_error());
    case LOWBIT_OUT_OF_MEMORY:
      PyErr_SetString(PyExc_MemoryError, lowbit_last_error());
      throw py::error_already_set();
    case LOWBIT_UNSUPPORTED:
      throw std::runtime_error(lowbit_last_error());
    default:
      throw py::value_error(lowbit_last_error());
  }
}

// Runs a call of the C API without the interpreter's lock.
template <class Call>
void unlocked(const Call& call) {
  lowbit_status status;
  {
    const py::gil_scoped_release release;
    status = call();
  }
  check(status);
}

inline lowbit_format format_called(const std::string& name) {
  lowbit_format format;
  check(lowbit_format_find(name.c_str(), &format));
  return format;
}

inline lowbit_format_info info_of(lowbit_format format) {
  lowbit_format_info info;
  check(lowbit_format_get(format, &info));
  return info;
}

// A word of the C API's: its number is its place in the list.
template <class Number, size_t count>
Number called(const std::string& name, const char* argument, const char* const (&names)[count]) {
  std::string list;
  for (size_t i = 0; i < count; ++i) {
    if (name == names[i]) return static_cast<Number>(i);
    list += (i == 0 ? "" : i + 1 == count ? " or " : ", ") + std::string(names[i]);
  }
  throw py::value_error(std::string(argument) + " is '" + name + "': it must be " + list);
}

inline constexpr const char* family_names[] = {"weight_only", "integer", "fp8"};
inline constexpr const char* device_names[] = {"cpu", "cuda"};
inline constexpr const char* accumulation_names[] = {"promoted", "fast"};

inline lowbit_family family_called(const std::string& name) {
  return called<lowbit_family>(name, "family", family_names);
}

struct array_shapes {
  std::vector<int64_t> codes, groups, supers;  // supers is empty where scales have one level

  explicit array_shapes(const lowbit_weight& w) {
    lowbit_array_shapes s;
    check(lowbit_weight_shapes(&w, &s));
    codes.assign(s.codes, s.codes + 2);
    groups.assign(s.scales, s.scales + 2);
    supers.assign(s.supers, s.supers + s.super_dimensions);
  }
};

// query.cpp: what the core knows.
void add_queries(py::module_& m);
// cuda.cpp: the operations on arrays in device memory.
void add_cuda(py::module_& m);

}  // namespace lowbit_python
