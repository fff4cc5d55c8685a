// lowbit._C: the core's operations on arrays of any library. (What the core knows: query.cpp; device memory: cuda.cpp.)
#include <pybind11/stl.h>

#include "array.h"
#include "call.h"
#include "lowbit/lowbit.h"
#include "product.h"
#include "threads.h"

namespace lowbit_python {
namespace {

// ---- weights ----

lowbit_weight description_of(const std::string& format, int64_t n, int64_t k, int64_t group_n, int64_t group_k,
                             const std::string& scale_dtype, bool zero_point) {
  static const int8_t some_zero_point = 0;
  lowbit_weight w{};
  w.format = format_called(format);
  w.n = n;
  w.k = k;
  w.group_n = group_n;
  w.group_k = group_k;
  w.scale_dtype = dtype_called(scale_dtype, "scale_dtype");
  w.zero_points = zero_point ? &some_zero_point : nullptr;
  w.global_scale = 1;
  return w;
}

size_t packed_bytes(const std::string& format, int64_t n, int64_t k, int64_t group_n, int64_t group_k,
                    const std::string& scale_dtype, bool zero_point, const std::string& packed_for) {
  lowbit_weight w = description_of(format, n, k, group_n, group_k, scale_dtype, zero_point);
  w.packed_for = called<lowbit_device>(packed_for, "packed_for", device_names);
  size_t bytes;
  check(lowbit_packed_bytes(&w, &bytes));
  return bytes;
}

// A packed weight, its header read and checked.
struct packed_weight {
  array bytes;
  lowbit_weight description;

  // `given`: the bytes of the whole, where only the header's are there.
  explicit packed_weight(const py::object& object, std::optional<int64_t> given = std::nullopt)
      : bytes(read(object, "packed")), description{} {
    bytes.expect_dtype({"uint8"});
    bytes.expect_dimensions(1);
    if (given && bytes.size() < LOWBIT_PACKED_HEADER_BYTES)
      throw py::value_error("packed has " + std::to_string(bytes.size()) + " bytes: its header alone has " +
                            std::to_string(LOWBIT_PACKED_HEADER_BYTES));
    check(lowbit_packed_describe(bytes.data, given ? static_cast<size_t>(*given) : size(), &description));
  }
  size_t size() const { return static_cast<size_t>(bytes.size()); }
};

py::dict describe(const lowbit_weight& w) {
  py::dict d;
  d["format"] = info_of(w.format).name;
  d["n"] = w.n;
  d["k"] = w.k;
  d["group_n"] = w.group_n;
  d["group_k"] = w.group_k;
  d["scale_dtype"] = dtype_name(w.scale_dtype);
  d["zero_point"] = w.zero_points != nullptr;
  d["global_scale"] = w.global_scale;
  d["packed_for"] = device_names[w.packed_for];
  d["scale_offset"] = w.scale_offset;
  return d;
}

// What scales have beside themselves, as Python gives it.
struct scale_arguments {
  py::object zero_points, mins, super_scales, super_mins;
  float scale_offset;
};

py::dict describe_packed(const py::object& packed, std::optional<int64_t> size) {
  return describe(packed_weight(packed, size).description);
}

std::string weight_to_text(const std::string& format, int64_t n, int64_t k, int64_t group_n, int64_t group_k,
                           const std::string& scale_dtype, bool zero_point) {
  const lowbit_weight w = description_of(format, n, k, group_n, group_k, scale_dtype, zero_point);
  char text[160];
  check(lowbit_weight_to_text(&w, text, sizeof text));
  return text;
}

py::dict weight_from_text(const std::string& text) {
  lowbit_weight w;
  check(lowbit_weight_from_text(text.c_str(), &w));
  return describe(w);
}

// A canonical weight whose arrays are checked and kept.
struct canonical_weight {
  array codes, scales;
  std::optional<array> zero_points, mins, super_scales, super_mins;
  lowbit_weight w;
};

canonical_weight canonical(const py::object& codes, const py::object& scales, const scale_arguments& beside,
                           const std::string& format, int64_t group_n, int64_t group_k, std::optional<int64_t> k,
                           float global_scale) {
  canonical_weight c{read(codes, "codes"),
                     read(scales, "scales"),
                     read_optional(beside.zero_points, "zero_points"),
                     read_optional(beside.mins, "mins"),
                     read_optional(beside.super_scales, "super_scales"),
                     read_optional(beside.super_mins, "super_mins"),
                     {}};
  c.w.format = format_called(format);
  const lowbit_format_info info = info_of(c.w.format);
  c.codes.expect_dtype({"uint8", "int8", "float8_e4m3fn", "float8_e5m2"});
  c.codes.expect_dimensions(2);
  c.w.n = c.codes.shape[0];
  c.w.k = k.value_or(c.codes.shape[1] * 8 / info.bits);
  c.w.group_n = group_n;
  c.w.group_k = group_k;
  c.w.global_scale = global_scale;
  c.w.scale_offset = beside.scale_offset;
  const array_shapes shapes(c.w);
  c.codes.expect_shape(shapes.codes);
  if (info.scale_dtype < 0) {
    c.w.scale_dtype = c.scales.float_dtype();
  } else {
    c.w.scale_dtype = static_cast<lowbit_dtype>(info.scale_dtype);
    c.scales.expect_dtype({dtype_name(c.w.scale_dtype), "uint8"});
  }
  c.scales.expect_shape(shapes.groups);
  c.w.codes = c.codes.data;
  c.w.scales = c.scales.data;
  const auto take = [](const std::optional<array>& given, const char* type,
                       const std::vector<int64_t>& shape) -> const void* {
    if (!given) return nullptr;
    given->expect_dtype({type});
    given->expect_shape(shape);
    return given->data;
  };
  const auto expect_given = [&](const std::optional<array>& given, bool wanted, const char* name) {
    if (given.has_value() != wanted)
      throw py::value_error(std::string(info.name) + (wanted ? " needs " : " has no ") + name);
  };
  expect_given(c.mins, info.has_min, "mins");
  expect_given(c.super_scales, info.super_groups, "super_scales");
  expect_given(c.super_mins, info.super_groups && info.has_min, "super_mins");
  const char* super_type = dtype_name(static_cast<lowbit_dtype>(info.super_dtype));
  c.w.zero_points = static_cast<const int8_t*>(take(c.zero_points, "int8", shapes.groups));
  c.w.mins = take(c.mins, dtype_name(c.w.scale_dtype), shapes.groups);
  c.w.super_scales = take(c.super_scales, super_type, shapes.supers);
  c.w.super_mins = take(c.super_mins, super_type, shapes.supers);
  return c;
}

py::array pack(const py::object& codes, const py::object& scales, const py::object& zero_points,
               const std::string& format, int64_t group_n, int64_t group_k, std::optional<int64_t> k,
               float global_scale, const py::object& mins, const py::object& super_scales, const py::object& super_mins,
               float scale_offset, int num_threads) {
  const scale_arguments beside{zero_points, mins, super_scales, super_mins, scale_offset};
  const canonical_weight c = canonical(codes, scales, beside, format, group_n, group_k, k, global_scale);
  size_t bytes;
  check(lowbit_packed_bytes(&c.w, &bytes));
  py::array packed = empty({static_cast<int64_t>(bytes)}, "uint8");
  void* const data = packed.mutable_data();
  const lowbit_parallel parallel = threads(num_threads);
  unlocked([&] { return lowbit_pack(&c.w, data, bytes, &parallel); });
  return packed;
}

py::dict unpack(const py::object& packed, int num_threads) {
  const packed_weight p(packed);
  const lowbit_weight& w = p.description;
  const bool bytes = w.scale_dtype == LOWBIT_E8M0 || w.scale_dtype == LOWBIT_E4M3;
  const lowbit_format_info info = info_of(w.format);
  const array_shapes shapes(w);
  py::array codes = empty(shapes.codes, "uint8");
  const std::string scale_type = bytes ? "uint8" : dtype_name(w.scale_dtype),
                    super_type = dtype_name(static_cast<lowbit_dtype>(info.super_dtype));
  py::array scales = empty(shapes.groups, scale_type);
  py::dict result = describe(w);
  result["codes"] = codes;
  result["scales"] = scales;
  const auto place = [&](bool wanted, const char* name, const std::string& type,
                         const std::vector<int64_t>& shape) -> void* {
    if (!wanted) {
      result[name] = py::none();
      return nullptr;
    }
    py::array out = empty(shape, type);
    result[name] = out;
    return out.mutable_data();
  };
  lowbit_weight_arrays out{};
  out.codes = codes.mutable_data();
  out.scales = scales.mutable_data();
  out.zero_points = static_cast<int8_t*>(place(w.zero_points, "zero_points", "int8", shapes.groups));
  out.mins = place(info.has_min, "mins", scale_type, shapes.groups);
  out.super_scales = place(info.super_groups, "super_scales", super_type, shapes.supers);
  out.super_mins = place(info.super_groups && info.has_min, "super_mins", super_type, shapes.supers);
  const lowbit_parallel parallel = threads(num_threads);
  unlocked([&] { return lowbit_unpack(p.bytes.data, p.size(), &out, &parallel); });
  return result;
}

py::array dequantize_packed(const py::object& packed, const std::string& dtype, int num_threads) {
  const packed_weight p(packed);
  const lowbit_dtype out_dtype = dtype_called(dtype, "dtype");
  py::array out = empty({p.description.n, p.description.k}, dtype);
  void* const data = out.mutable_data();
  const lowbit_parallel parallel = threads(num_threads);
  unlocked([&] { return lowbit_dequantize_packed(p.bytes.data, p.size(), data, out_dtype, &parallel); });
  return out;
}

py::array dequantize(const py::object& codes, const py::object& scales, const py::object& zero_points,
                     const std::string& format, int64_t group_n, int64_t group_k, std::optional<int64_t> k,
                     float global_scale, const py::object& mins, const py::object& super_scales,
                     const py::object& super_mins, float scale_offset, const std::string& dtype, int num_threads) {
  const scale_arguments beside{zero_points, mins, super_scales, super_mins, scale_offset};
  const canonical_weight c = canonical(codes, scales, beside, format, group_n, group_k, k, global_scale);
  const lowbit_dtype out_dtype = dtype_called(dtype, "dtype");
  py::array out = empty({c.w.n, c.w.k}, dtype);
  void* const data = out.mutable_data();
  const lowbit_parallel parallel = threads(num_threads);
  unlocked([&] { return lowbit_dequantize(&c.w, data, out_dtype, &parallel); });
  return out;
}

py::array encode(const py::object& w, const py::object& divisor, const py::object& zero_points,
                 const std::string& format, int64_t group_n, int64_t group_k, int num_threads) {
  const array weight = read(w, "w"), divisors = read(divisor, "divisor");
  const std::optional<array> zeros = read_optional(zero_points, "zero_points");
  weight.expect_dimensions(2);
  lowbit_weight like{};
  like.format = format_called(format);
  like.n = weight.shape[0];
  like.k = weight.shape[1];
  like.group_n = group_n;
  like.group_k = group_k;
  const array_shapes shapes(like);
  lowbit_encode_args args{};
  args.format = like.format;
  args.n = like.n;
  args.k = like.k;
  args.group_n = group_n;
  args.group_k = group_k;
  args.w = weight.data;
  args.w_dtype = weight.float_dtype();
  args.divisor = divisors.data;
  args.divisor_dtype = divisors.float_dtype();
  divisors.expect_shape(shapes.groups);
  if (zeros) {
    zeros->expect_dtype({"int8"});
    zeros->expect_shape(shapes.groups);
    args.zero_points = static_cast<const int8_t*>(zeros->data);
  }
  py::array codes = empty(shapes.codes, "uint8");
  args.codes = codes.mutable_data();
  const lowbit_parallel parallel = threads(num_threads);
  unlocked([&] { return lowbit_encode(&args, &parallel); });
  return codes;
}

// ---- multiplication ----

py::array gemm(const py::object& x, const py::object& packed, const py::object& bias, const std::string& family,
               const std::optional<std::string>& out_dtype, const py::object& x_scale, const py::object& x_zero_point,
               bool symmetric, const std::optional<std::string>& function, const py::object& multiply,
               const py::object& residual, int num_threads) {
  const packed_weight w(packed);
  product p(w.description, {x, bias, x_scale, x_zero_point, multiply, residual, family, function, symmetric}, read);
  p.args.packed = w.bytes.data;
  p.args.packed_bytes = w.size();
  const bool quantized = p.args.x_dtype == LOWBIT_I8 || p.args.x_dtype == LOWBIT_E4M3;
  const std::string y_dtype = out_dtype.value_or(quantized ? "float32" : p.x.dtype);
  p.args.y_dtype = dtype_called(y_dtype, "out_dtype");
  p.args.y_stride = w.description.n;
  py::array y = empty({p.args.m, w.description.n}, y_dtype);
  p.args.y = y.mutable_data();
  const lowbit_parallel parallel = threads(num_threads);
  p.args.parallel = &parallel;
  unlocked([&] { return lowbit_gemm(&p.args); });
  return y;
}

py::tuple quantize_rows(const py::object& given_x, bool symmetric, int num_threads) {
  const array x = read(given_x, "x", /*rows_only=*/true);
  x.expect_dimensions(2);
  const lowbit_dtype dtype = x.float_dtype();
  const int64_t m = x.shape[0], k = x.shape[1];
  py::array q = empty({m, k}, "int8"), scale = empty({m}, "float32"), zero_point = empty({m}, "int32");
  auto* const to_q = static_cast<int8_t*>(q.mutable_data());
  auto* const to_scale = static_cast<float*>(scale.mutable_data());
  auto* const to_zero_point = static_cast<int32_t*>(zero_point.mutable_data());
  const lowbit_parallel parallel = threads(num_threads);
  unlocked([&] {
    return lowbit_quantize_rows(x.data, dtype, m, k, x.row_stride,
                                symmetric ? LOWBIT_DYNAMIC_SYMMETRIC : LOWBIT_DYNAMIC_ASYMMETRIC, to_q, to_scale,
                                to_zero_point, &parallel);
  });
  return py::make_tuple(q, scale, zero_point);
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  using py::arg;
  const auto keywords = py::kw_only();
  const auto none = py::none();
  m.doc() =
      "The lowbit core on arrays of any library, without torch: NumPy arrays, CPU arrays with __dlpack__, and buffers. "
      "Results are new NumPy arrays (bfloat16 ones need ml_dtypes). num_threads=0: all that this process may use.";

  m.attr("PACKED_HEADER_BYTES") = LOWBIT_PACKED_HEADER_BYTES;
  add_queries(m);

  m.def("packed_bytes", &packed_bytes, arg("format"), arg("n"), arg("k"), arg("group_n"), arg("group_k"),
        arg("scale_dtype"), arg("zero_point"), arg("packed_for") = "cpu", "Size of a packed weight in bytes.");
  m.def(
      "describe", &describe_packed, arg("packed"), arg("size") = none,
      "A packed weight's header: format, n, k, group_n, group_k, scale_dtype, zero_point, global_scale, scale_offset, "
      "packed_for. size: bytes of the whole, where `packed` is its beginning.");
  m.def("weight_to_text", &weight_to_text, arg("format"), arg("n"), arg("k"), arg("group_n"), arg("group_k"),
        arg("scale_dtype"), arg("zero_point"), "A weight's description as text: 'int4 4096x11008 1x128 bfloat16'.");
  m.def("weight_from_text", &weight_from_text, arg("text"), "What describe() says, from such a text.");

  m.def("pack", &pack, arg("codes"), arg("scales"), arg("zero_points") = none, keywords, arg("format"), arg("group_n"),
        arg("group_k"), arg("k") = none, arg("global_scale") = 1.0f, arg("mins") = none, arg("super_scales") = none,
        arg("super_mins") = none, arg("scale_offset") = 0.0f, arg("num_threads") = 0,
        "uint8 [packed_bytes] from codes [n, ceil(k * bits / 8)], scales, zero points and mins [n groups, k groups], "
        "and, where scales have two levels, super_scales and super_mins.");
  m.def("unpack", &unpack, arg("packed"), keywords, arg("num_threads") = 0,
        "What describe() says, with codes, scales (float8 ones as uint8), zero_points, mins, super_scales and "
        "super_mins (or None).");
  m.def("dequantize_packed", &dequantize_packed, arg("packed"), keywords, arg("dtype") = "float32",
        arg("num_threads") = 0, "[n, k] from a packed weight.");
  m.def("dequantize", &dequantize, arg("codes"), arg("scales"), arg("zero_points") = none, keywords, arg("format"),
        arg("group_n"), arg("group_k"), arg("k") = none, arg("global_scale") = 1.0f, arg("mins") = none,
        arg("super_scales") = none, arg("super_mins") = none, arg("scale_offset") = 0.0f, arg("dtype") = "float32",
        arg("num_threads") = 0, "[n, k] from the canonical form.");
  m.def("encode", &encode, arg("w"), arg("divisor"), arg("zero_points") = none, keywords, arg("format"), arg("group_n"),
        arg("group_k"), arg("num_threads") = 0,
        "Codes [n, ceil(k * bits / 8)] of the values nearest to w / divisor + zero_point, ties to even, saturating.");
  m.def("gemm", &gemm, arg("x"), arg("packed"), arg("bias") = none, keywords, arg("family") = "weight_only",
        arg("out_dtype") = none, arg("x_scale") = none, arg("x_zero_point") = none, arg("symmetric") = true,
        arg("activation_function") = none, arg("multiply") = none, arg("residual") = none, arg("num_threads") = 0,
        "y [m, n] = f(x [m, k] W^T + bias), times multiply or plus residual [m, n]; f: silu, gelu, gelu_tanh, relu. "
        "family 'integer' quantizes x to int8: by x_scale float32 [1] or [m] and x_zero_point int32 (x may be int8 "
        "then), or row by row, symmetric or not.");
  m.def("quantize_rows", &quantize_rows, arg("x"), arg("symmetric") = true, keywords, arg("num_threads") = 0,
        "(int8 [m, k], float32 scale [m], int32 zero point [m]) of x [m, k], as gemm quantizes it.");
  add_cuda(m);
}

}  // namespace lowbit_python
