// Operations on arrays in device memory, of any library with DLPack. The caller gives the stream, the results' arrays
// and the workspace: nothing is allocated or waited for here.
#include <pybind11/stl.h>

#include "array.h"
#include "call.h"
#include "product.h"

namespace lowbit_python {
namespace {

void* stream_of(intptr_t stream) { return reinterpret_cast<void*>(stream); }
void* writable(const array& a) { return const_cast<void*>(a.data); }

lowbit_weight described(const std::string& text, float global_scale) {
  lowbit_weight w;
  check(lowbit_weight_from_text(text.c_str(), &w));
  w.global_scale = global_scale;
  w.packed_for = LOWBIT_CUDA;
  return w;
}

struct packed_array {
  array bytes;
  lowbit_weight w;

  packed_array(const py::object& packed, const std::string& description, float global_scale, intptr_t stream)
      : bytes(read_cuda(packed, "packed", stream)), w(described(description, global_scale)) {
    bytes.expect_dtype({"uint8"});
    bytes.expect_dimensions(1);
  }
  size_t size() const { return static_cast<size_t>(bytes.size()); }
};

void pack(const py::object& codes, const py::object& scales, const py::object& zero_points, const py::object& packed,
          const std::string& description, float global_scale, intptr_t stream) {
  packed_array p(packed, description, global_scale, stream);
  lowbit_weight& w = p.w;
  const lowbit_format_info info = info_of(w.format);
  if (info.has_min || info.super_groups)
    throw py::value_error(std::string(info.name) + " has minima or scales of two levels: pack it on the CPU");
  const array_shapes shapes(w);
  const array c = read_cuda(codes, "codes", stream), s = read_cuda(scales, "scales", stream);
  c.expect_dtype({"uint8", "int8", "float8_e4m3fn", "float8_e5m2"});
  c.expect_shape(shapes.codes);
  s.expect_dtype({dtype_name(w.scale_dtype), info.scale_dtype < 0 ? dtype_name(w.scale_dtype) : "uint8"});
  s.expect_shape(shapes.groups);
  if (zero_points.is_none() != (w.zero_points == nullptr))
    throw py::value_error("zero_points are " + std::string(zero_points.is_none() ? "missing" : "given") +
                          ", the description says otherwise");
  w.codes = c.data;
  w.scales = s.data;
  std::optional<array> zeros;
  if (w.zero_points) {
    zeros = read_cuda(zero_points, "zero_points", stream);
    zeros->expect_dtype({"int8"});
    zeros->expect_shape(shapes.groups);
    w.zero_points = static_cast<const int8_t*>(zeros->data);
  }
  unlocked([&] { return lowbit_pack_cuda(&w, writable(p.bytes), p.size(), stream_of(stream)); });
}

void dequantize_packed(const py::object& packed, const py::object& out, const std::string& description,
                       intptr_t stream) {
  const packed_array p(packed, description, 1, stream);
  const array to = read_cuda(out, "out", stream);
  to.expect_shape({p.w.n, p.w.k});
  const lowbit_dtype dtype = to.float_dtype();
  unlocked([&] {
    return lowbit_dequantize_packed_cuda(&p.w, p.bytes.data, p.size(), writable(to), dtype, stream_of(stream));
  });
}

// Calls allocate(bytes) for the workspace, if there is to be one, and multiplies.
void gemm(const py::object& x, const py::object& packed, const py::object& out, const py::object& bias,
          const py::object& allocate, const std::string& description, const std::string& family,
          const py::object& x_scale, const py::object& x_zero_point, bool symmetric, int64_t x_group,
          const std::string& accum, const std::optional<std::string>& function, const py::object& multiply,
          const py::object& residual, intptr_t stream) {
  const packed_array weight(packed, description, 1, stream);
  const auto read = [&](const py::object& object, const char* name, bool rows_only) {
    return read_cuda(object, name, stream, rows_only);
  };
  product p(weight.w, {x, bias, x_scale, x_zero_point, multiply, residual, family, function, symmetric}, read);
  const array y = read(out, "out", /*rows_only=*/true);
  y.expect_shape({p.args.m, weight.w.n});
  p.args.y = writable(y);
  p.args.y_dtype = y.float_dtype();
  p.args.y_stride = y.row_stride;
  p.args.device = LOWBIT_CUDA;
  p.args.stream = stream_of(stream);
  p.args.weight = &weight.w;
  p.args.packed = weight.bytes.data;
  p.args.packed_bytes = weight.size();
  p.args.x_group = x_group;
  p.args.accumulation = called<lowbit_accumulation>(accum, "accum", accumulation_names);
  check(lowbit_gemm_workspace(&p.args, &p.args.workspace_bytes));
  std::optional<array> workspace;
  if (p.args.workspace_bytes) {
    constexpr size_t alignment = 256;  // more than NumPy's own, in an emulated build
    workspace = read(allocate(p.args.workspace_bytes + alignment), "workspace", false);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(workspace->data);
    p.args.workspace = reinterpret_cast<void*>((begin + alignment - 1) / alignment * alignment);
  }
  unlocked([&] { return lowbit_gemm(&p.args); });
}

}  // namespace

void add_cuda(py::module_& m) {
  using py::arg;
  const auto keywords = py::kw_only();
  const auto none = py::none();
  m.def("cuda_pack", &pack, arg("codes"), arg("scales"), arg("zero_points"), arg("packed"), keywords,
        arg("description"), arg("global_scale") = 1.0f, arg("stream") = 0,
        "Writes packed, uint8 [packed_bytes(..., 'cuda')], all in device memory.");
  m.def("cuda_dequantize_packed", &dequantize_packed, arg("packed"), arg("out"), keywords, arg("description"),
        arg("stream") = 0, "Writes out [n, k], in device memory.");
  m.def("cuda_gemm", &gemm, arg("x"), arg("packed"), arg("out"), arg("bias") = none, keywords, arg("allocate"),
        arg("description"), arg("family") = "weight_only", arg("x_scale") = none, arg("x_zero_point") = none,
        arg("symmetric") = true, arg("x_group") = 0, arg("accum") = "promoted", arg("activation_function") = none,
        arg("multiply") = none, arg("residual") = none, arg("stream") = 0,
        "Writes out [m, n] = x [m, k] W^T + bias, in device memory, with what may follow as in gemm. allocate(bytes) "
        "gives a uint8 array there, which is "
        "free again behind the work that this call puts on the stream.");
}

}  // namespace lowbit_python
