// Operations on arrays in device memory, of any library with DLPack. The caller gives the stream, the results' arrays
// and the workspace: nothing is allocated or waited for here.
#include <pybind11/stl.h>

#include "array.h"
#include "call.h"

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
  const int64_t groups_n = ceil_div(w.n, w.group_n), groups_k = ceil_div(w.k, w.group_k);
  const array c = read_cuda(codes, "codes", stream), s = read_cuda(scales, "scales", stream);
  c.expect_dtype({"uint8", "int8", "float8_e4m3fn", "float8_e5m2"});
  c.expect_shape({w.n, ceil_div(w.k * info.bits, 8)});
  s.expect_dtype({dtype_name(w.scale_dtype), info.scale_dtype < 0 ? dtype_name(w.scale_dtype) : "uint8"});
  s.expect_shape({groups_n, groups_k});
  if (zero_points.is_none() != (w.zero_points == nullptr))
    throw py::value_error("zero_points are " + std::string(zero_points.is_none() ? "missing" : "given") +
                          ", the description says otherwise");
  w.codes = c.data;
  w.scales = s.data;
  std::optional<array> zeros;
  if (w.zero_points) {
    zeros = read_cuda(zero_points, "zero_points", stream);
    zeros->expect_dtype({"int8"});
    zeros->expect_shape({groups_n, groups_k});
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

// The arguments of a product, and the arrays that they point into.
struct product {
  packed_array weight;
  array x, y;
  std::optional<array> bias, scale, zero_point;
  lowbit_gemm_args args{};

  product(const py::object& given_x, const py::object& packed, const py::object& out, const py::object& given_bias,
          const std::string& description, const std::string& family, const py::object& x_scale,
          const py::object& x_zero_point, bool symmetric, int64_t x_group, const std::string& accum, intptr_t stream)
      : weight(packed, description, 1, stream),
        x(read_cuda(given_x, "x", stream, /*rows_only=*/true)),
        y(read_cuda(out, "out", stream, /*rows_only=*/true)) {
    const lowbit_weight& w = weight.w;
    x.expect_dimensions(2);
    if (x.shape[1] != w.k)
      throw py::value_error("x has k = " + std::to_string(x.shape[1]) + ", but the packed weight is " +
                            std::to_string(w.n) + " x " + std::to_string(w.k));
    y.expect_shape({x.shape[0], w.n});
    args.device = LOWBIT_CUDA;
    args.weight = &weight.w;
    args.family = family_called(family);
    args.m = x.shape[0];
    args.x = x.data;
    args.x_dtype = dtype_called(x.dtype, "x");
    args.x_stride = x.row_stride;
    args.packed = weight.bytes.data;
    args.packed_bytes = weight.size();
    args.y = writable(y);
    args.y_dtype = y.float_dtype();
    args.y_stride = y.row_stride;
    args.stream = stream_of(stream);
    args.x_group = x_group;
    args.accumulation = called<lowbit_accumulation>(accum, "accum", accumulation_names);
    args.activation = symmetric ? LOWBIT_DYNAMIC_SYMMETRIC : LOWBIT_DYNAMIC_ASYMMETRIC;
    if (!given_bias.is_none()) {
      bias = read_cuda(given_bias, "bias", stream);
      bias->expect_shape({w.n});
      args.bias = bias->data;
      args.bias_dtype = bias->float_dtype();
    }
    if (!x_scale.is_none()) {
      scale = read_cuda(x_scale, "x_scale", stream);
      scale->expect_dtype({"float32"});
      args.activation = LOWBIT_STATIC;
      args.x_scale = static_cast<const float*>(scale->data);
      args.num_x_scales = scale->size();
    }
    if (!x_zero_point.is_none()) {
      if (!scale) throw py::value_error("x_zero_point is given without x_scale");
      zero_point = read_cuda(x_zero_point, "x_zero_point", stream);
      zero_point->expect_dtype({"int32"});
      if (zero_point->size() != scale->size())
        throw py::value_error("x_zero_point has " + std::to_string(zero_point->size()) + " elements and x_scale " +
                              std::to_string(scale->size()));
      args.x_zero_point = static_cast<const int32_t*>(zero_point->data);
    }
  }
};

// Calls allocate(bytes) for the workspace, if there is to be one, and multiplies.
void gemm(const py::object& x, const py::object& packed, const py::object& out, const py::object& bias,
          const py::object& allocate, const std::string& description, const std::string& family,
          const py::object& x_scale, const py::object& x_zero_point, bool symmetric, int64_t x_group,
          const std::string& accum, intptr_t stream) {
  product p(x, packed, out, bias, description, family, x_scale, x_zero_point, symmetric, x_group, accum, stream);
  check(lowbit_gemm_workspace(&p.args, &p.args.workspace_bytes));
  std::optional<array> workspace;
  if (p.args.workspace_bytes) {
    constexpr size_t alignment = 256;  // more than NumPy's own, in an emulated build
    workspace = read_cuda(allocate(p.args.workspace_bytes + alignment), "workspace", stream);
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
  m.def(
      "cuda_gemm", &gemm, arg("x"), arg("packed"), arg("out"), arg("bias") = none, keywords, arg("allocate"),
      arg("description"), arg("family") = "weight_only", arg("x_scale") = none, arg("x_zero_point") = none,
      arg("symmetric") = true, arg("x_group") = 0, arg("accum") = "promoted", arg("stream") = 0,
      "Writes out [m, n] = x [m, k] W^T + bias, in device memory. allocate(bytes) gives a uint8 array there, which is "
      "free again behind the work that this call puts on the stream.");
}

}  // namespace lowbit_python
