#include "array.h"

#include <algorithm>
#include <cstring>

namespace lowbit_python {
namespace {

// ---- DLPack, version 0 of its structures: what __dlpack__() gives when asked for no other ----

struct dl_device {
  int32_t type, id;
};
struct dl_dtype {
  uint8_t code, bits;
  uint16_t lanes;
};
struct dl_tensor {
  void* data;
  dl_device device;
  int32_t ndim;
  dl_dtype dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: row-major
  uint64_t byte_offset;
};
struct dl_managed_tensor {
  dl_tensor tensor;
  void* context;
  void (*deleter)(dl_managed_tensor*);
};
constexpr int32_t dl_cpu = 1, dl_cuda = 2, dl_cuda_managed = 13;

std::string dl_dtype_name(dl_dtype t) {
  static const struct {
    dl_dtype type;
    const char* name;
  } names[] = {
      {{2, 32, 1}, "float32"},
      {{2, 16, 1}, "float16"},
      {{2, 64, 1}, "float64"},
      {{4, 16, 1}, "bfloat16"},
      {{0, 8, 1}, "int8"},
      {{1, 8, 1}, "uint8"},
      {{0, 32, 1}, "int32"},
      {{0, 64, 1}, "int64"},
      {{10, 8, 1}, "float8_e4m3fn"},
      {{12, 8, 1}, "float8_e5m2"},
      {{14, 8, 1}, "float8_e8m0fnu"},
  };
  for (const auto& row : names)
    if (row.type.code == t.code && row.type.bits == t.bits && row.type.lanes == t.lanes) return row.name;
  return "DLPack type " + std::to_string(t.code) + " of " + std::to_string(t.bits) + " bits";
}

// ---- checks that both kinds share ----

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

// Elements between rows if the array is row-major but for them; -1: it is not.
int64_t row_stride(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, bool rows_only) {
  int64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    const bool free = rows_only && shape.size() == 2 && i == 0 && strides[i] >= expected;
    if (shape[i] > 1 && strides[i] != expected && !free) return -1;
    expected *= shape[i];
  }
  if (shape.size() != 2) return shape.empty() ? 1 : shape.back();
  return shape[0] > 1 ? strides[0] : shape[1];
}

// NumPy's own dtypes by number: asking for the name takes a microsecond.
std::string numpy_dtype_name(const py::dtype& dtype) {
  static const struct {
    int number;
    const char* name;
  } names[] = {
      {py::dtype::num_of<float>(), "float32"},
      {py::dtype::num_of<uint8_t>(), "uint8"},
      {py::dtype::num_of<int8_t>(), "int8"},
      {py::dtype::num_of<int32_t>(), "int32"},
  };
  for (const auto& row : names)
    if (dtype.num() == row.number) return row.name;
  return py::str(dtype.attr("name")).cast<std::string>();
}

array read_numpy(py::array a, const char* name, bool rows_only) {
  array r;
  r.name = name;
  r.dtype = numpy_dtype_name(a.dtype());
  if (a.dtype().byteorder() == '>')
    throw py::type_error(r.name + " has byte-swapped elements: they must be in native order");
  r.shape.assign(a.shape(), a.shape() + a.ndim());
  const auto stride_of = [](const py::array& from) {
    std::vector<int64_t> strides(from.strides(), from.strides() + from.ndim());
    const bool whole = std::ranges::all_of(strides, [&](int64_t s) { return s % from.itemsize() == 0; });
    for (int64_t& s : strides) s /= from.itemsize();
    return whole ? strides : std::vector<int64_t>(strides.size(), -1);
  };
  r.row_stride = a.size() ? row_stride(r.shape, stride_of(a), rows_only) : 0;
  if (r.row_stride < 0) {
    a = py::module_::import("numpy").attr("ascontiguousarray")(a);
    r.row_stride = r.shape.size() == 2 ? r.shape[1] : 1;
  }
  r.data = a.data();
  r.owner = std::move(a);
  return r;
}

array read_capsule(const py::capsule& capsule, const char* name, bool rows_only);

array read_dlpack(const py::object& object, const char* name, bool rows_only) {
  const auto device = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  if (device.first != dl_cpu)
    throw py::value_error(std::string(name) + " is on DLPack device " + std::to_string(device.first) + ":" +
                          std::to_string(device.second) + ": it must be on the CPU (1:0)");
  return read_capsule(object.attr("__dlpack__")(), name, rows_only);
}

array read_capsule(const py::capsule& capsule, const char* name, bool rows_only) {
  auto* managed = static_cast<dl_managed_tensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  array r;
  r.owner = py::capsule(managed, [](void* p) {
    auto* m = static_cast<dl_managed_tensor*>(p);
    if (m->deleter) m->deleter(m);
  });
  const dl_tensor& t = managed->tensor;
  r.name = name;
  r.dtype = dl_dtype_name(t.dtype);
  r.shape.assign(t.shape, t.shape + t.ndim);
  r.data = static_cast<const char*>(t.data) + t.byte_offset;
  if (t.strides) {
    r.row_stride = r.size() ? row_stride(r.shape, {t.strides, t.strides + t.ndim}, rows_only) : 0;
    if (r.row_stride < 0) throw py::value_error(r.name + " is not row-major: it must be contiguous");
  } else {
    r.row_stride = r.shape.size() == 2 ? r.shape[1] : 1;
  }
  return r;
}

}  // namespace

int64_t array::size() const {
  int64_t size = 1;
  for (const int64_t s : shape) size *= s;
  return size;
}

void array::expect_dtype(std::initializer_list<const char*> allowed) const {
  std::string list;
  for (const char* candidate : allowed) {
    if (dtype == candidate) return;
    list += (list.empty() ? "" : candidate == *(allowed.end() - 1) ? " or " : ", ") + std::string(candidate);
  }
  throw py::type_error(name + " has dtype " + dtype + ": it must be " + list);
}

void array::expect_dimensions(size_t wanted) const {
  if (shape.size() != wanted)
    throw py::value_error(name + " has shape " + shape_text(shape) + ": it must have " + std::to_string(wanted) +
                          (wanted == 1 ? " dimension" : " dimensions"));
}

void array::expect_shape(const std::vector<int64_t>& wanted) const {
  if (!std::ranges::equal(shape, wanted))
    throw py::value_error(name + " has shape " + shape_text(shape) + ": it must be " + shape_text(wanted));
}

lowbit_dtype array::float_dtype() const {
  expect_dtype({"float32", "float16", "bfloat16"});
  return dtype_called(dtype, name.c_str());
}

array read(const py::object& object, const char* name, bool rows_only) {
  if (py::isinstance<py::array>(object)) return read_numpy(py::reinterpret_borrow<py::array>(object), name, rows_only);
  if (py::hasattr(object, "__dlpack__")) return read_dlpack(object, name, rows_only);
  if (PyObject_CheckBuffer(object.ptr())) {
    const auto numpy = py::module_::import("numpy");
    const bool bytes = py::isinstance<py::bytes>(object) || py::isinstance<py::bytearray>(object);
    return read_numpy(bytes ? numpy.attr("frombuffer")(object, "uint8") : numpy.attr("asarray")(object), name,
                      rows_only);
  }
  throw py::type_error(std::string(name) + " is of type " +
                       py::str(py::type::of(object).attr("__name__")).cast<std::string>() +
                       ": it must be a NumPy array, an array with __dlpack__, or a buffer");
}

array read_cuda(const py::object& object, const char* name, intptr_t stream, bool rows_only) {
  if (!py::hasattr(object, "__dlpack__"))
    throw py::type_error(std::string(name) + " is of type " +
                         py::str(py::type::of(object).attr("__name__")).cast<std::string>() +
                         ": it must be an array on a CUDA device, with __dlpack__");
  const auto device = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  if (LOWBIT_EMULATED && device.first == dl_cpu) return read(object, name, rows_only);
  if (device.first != dl_cuda && device.first != dl_cuda_managed)
    throw py::value_error(std::string(name) + " is on DLPack device " + std::to_string(device.first) + ":" +
                          std::to_string(device.second) + ": it must be on a CUDA device (2)");
  // DLPack's numbers of the default streams: 1, and 2 for the thread's own; 0 would be ambiguous.
  return read_capsule(object.attr("__dlpack__")(py::arg("stream") = stream ? stream : 1), name, rows_only);
}

std::optional<array> read_optional(const py::object& object, const char* name) {
  return object.is_none() ? std::nullopt : std::optional(read(object, name));
}

py::array empty(const std::vector<int64_t>& shape, const std::string& dtype) {
  if (dtype != "bfloat16") return py::array(py::dtype(dtype), shape);
  try {
    return py::array(py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")), shape);
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_ImportError)) throw;
    throw py::type_error("NumPy has no bfloat16: install ml_dtypes, or ask for float32 or float16 results");
  }
}

namespace {

const char* const dtype_names[] = {"float32",        "float16",       "bfloat16", "int8",
                                   "float8_e8m0fnu", "float8_e4m3fn", "uint8"};

}  // namespace

const char* dtype_name(lowbit_dtype dtype) { return dtype_names[dtype]; }

lowbit_dtype dtype_called(const std::string& name, const char* argument) {
  for (int i = 0; i < static_cast<int>(std::size(dtype_names)); ++i)
    if (name == dtype_names[i]) return static_cast<lowbit_dtype>(i);
  std::string list;
  for (const char* known : dtype_names) list += (list.empty() ? "" : ", ") + std::string(known);
  throw py::value_error(std::string(argument) + " is '" + name + "': it must be one of " + list);
}

}  // namespace lowbit_python
