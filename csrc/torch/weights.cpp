// pack, unpack, dequantize, encode: between the canonical form of a weight, its packed form and plain floats.
#include "call.h"
#include "operators.h"

namespace lowbit_torch {
namespace {

// A canonical weight whose tensors are checked and kept.
struct canonical_weight {
  tensor codes, scales;
  std::optional<tensor> zero_points, mins, super_scales, super_mins;
  lowbit_weight w;
};

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

// Refuses a tensor that the format has not, or one that is missing.
void expect_given(bool given, bool wanted, const char* name, const lowbit_format_info& info) {
  if (given != wanted) invalid(std::string(info.name) + (wanted ? " needs " : " has no ") + name);
}

canonical_weight canonical(const execution& on, const tensor& codes, const tensor& scales,
                           const std::optional<tensor>& zero_points, double global_scale, const std::string& format,
                           int64_t n, int64_t k, int64_t group_n, int64_t group_k, const std::optional<tensor>& mins,
                           const std::optional<tensor>& super_scales, const std::optional<tensor>& super_mins,
                           double scale_offset) {
  on.expect(scales, "scales");
  on.expect(zero_points, "zero_points");
  on.expect(mins, "mins");
  on.expect(super_scales, "super_scales");
  on.expect(super_mins, "super_mins");
  lowbit_weight w{};
  w.packed_for = on.device;
  w.format = format_called(format);
  lowbit_format_info info;
  check(lowbit_format_get(w.format, &info));
  w.n = n;
  w.k = k;
  w.group_n = group_n;
  w.group_k = group_k;
  w.global_scale = static_cast<float>(global_scale);
  w.scale_offset = static_cast<float>(scale_offset);
  const array_shapes shapes(w);
  expect_dtype(codes, "codes", uint8_type());
  expect_shape(codes, "codes", shapes.codes);
  if (info.scale_dtype < 0) {
    w.scale_dtype = float_dtype(scales.type(), "scales");
  } else {
    w.scale_dtype = static_cast<lowbit_dtype>(info.scale_dtype);
    expect_dtype(scales, "scales", torch_dtype(w.scale_dtype));
  }
  expect_shape(scales, "scales", shapes.groups);
  canonical_weight c{
      codes.contiguous(), scales.contiguous(), std::nullopt, std::nullopt, std::nullopt, std::nullopt, w};
  const auto take = [](const std::optional<tensor>& given, const char* name, dtype type,
                       const std::vector<int64_t>& shape, std::optional<tensor>& kept) -> const void* {
    if (!given) return nullptr;
    expect_dtype(*given, name, type);
    expect_shape(*given, name, shape);
    kept = given->contiguous();
    return kept->data();
  };
  expect_given(mins.has_value(), info.has_min, "mins", info);
  expect_given(super_scales.has_value(), info.super_groups, "super_scales", info);
  expect_given(super_mins.has_value(), info.super_groups && info.has_min, "super_mins", info);
  const dtype super_type = torch_dtype(static_cast<lowbit_dtype>(info.super_dtype));
  c.w.zero_points =
      static_cast<const int8_t*>(take(zero_points, "zero_points", int8_type(), shapes.groups, c.zero_points));
  c.w.mins = take(mins, "mins", scales.type(), shapes.groups, c.mins);
  c.w.super_scales = take(super_scales, "super_scales", super_type, shapes.supers, c.super_scales);
  c.w.super_mins = take(super_mins, "super_mins", super_type, shapes.supers, c.super_mins);
  c.w.codes = c.codes.data();
  c.w.scales = c.scales.data();
  return c;
}

}  // namespace

tensor pack(const tensor& codes, const tensor& scales, const std::optional<tensor>& zero_points, double global_scale,
            const std::string& format, int64_t n, int64_t k, int64_t group_n, int64_t group_k,
            const std::optional<tensor>& mins, const std::optional<tensor>& super_scales,
            const std::optional<tensor>& super_mins, double scale_offset) {
  const execution on(codes);
  const canonical_weight c = canonical(on, codes, scales, zero_points, global_scale, format, n, k, group_n, group_k,
                                       mins, super_scales, super_mins, scale_offset);
  size_t bytes;
  check(lowbit_packed_bytes(&c.w, &bytes));
  const int64_t sizes[] = {static_cast<int64_t>(bytes)};
  tensor packed = tensor::empty(sizes, uint8_type(), on.where);
  check(on.cuda() ? lowbit_pack_cuda(&c.w, packed.mutable_data(), bytes, on.stream)
                  : lowbit_pack(&c.w, packed.mutable_data(), bytes, &on.threads));
  return packed;
}

void unpack(const tensor& packed, const tensor& codes, const tensor& scales, const std::optional<tensor>& zero_points,
            const std::optional<tensor>& mins, const std::optional<tensor>& super_scales,
            const std::optional<tensor>& super_mins, const std::optional<std::string>& description) {
  const execution on(packed);
  const packed_weight p(packed, description, on);
  const lowbit_weight& w = p.description;
  lowbit_format_info info;
  check(lowbit_format_get(w.format, &info));
  const array_shapes shapes(w);
  const auto place = [&](const tensor& out, const char* name, dtype type, const std::vector<int64_t>& shape) {
    on.expect(out, name);
    expect_dtype(out, name, type);
    expect_shape(out, name, shape);
    expect_contiguous(out, name);
    return out.mutable_data();
  };
  const auto place_if = [&](const std::optional<tensor>& out, bool wanted, const char* name, dtype type,
                            const std::vector<int64_t>& shape) -> void* {
    if (!out) return nullptr;
    if (!wanted) invalid(std::string(name) + " are given, but the packed weight has none");
    return place(*out, name, type, shape);
  };
  const dtype scale_type = torch_dtype(w.scale_dtype),
              super_type = torch_dtype(static_cast<lowbit_dtype>(info.super_dtype));
  lowbit_weight_arrays out{};
  out.codes = place(codes, "codes", uint8_type(), shapes.codes);
  out.scales = place(scales, "scales", scale_type, shapes.groups);
  out.zero_points =
      static_cast<int8_t*>(place_if(zero_points, w.zero_points, "zero_points", int8_type(), shapes.groups));
  out.mins = place_if(mins, info.has_min, "mins", scale_type, shapes.groups);
  out.super_scales = place_if(super_scales, info.super_groups, "super_scales", super_type, shapes.supers);
  out.super_mins = place_if(super_mins, info.super_groups && info.has_min, "super_mins", super_type, shapes.supers);
  check(on.cuda() ? lowbit_unpack_cuda(&w, p.data, p.bytes, &out, on.stream)
                  : lowbit_unpack(p.data, p.bytes, &out, &on.threads));
}

tensor dequantize_packed(const tensor& packed, int64_t n, int64_t k, dtype type,
                         const std::optional<std::string>& description) {
  const execution on(packed);
  const packed_weight p(packed, description, on);
  p.expect_size(n, k);
  const lowbit_dtype out_dtype = float_dtype(type, "dtype");
  const int64_t sizes[] = {n, k};
  tensor out = tensor::empty(sizes, type, on.where);
  void* const data = out.mutable_data();
  check(on.cuda() ? lowbit_dequantize_packed_cuda(&p.description, p.data, p.bytes, data, out_dtype, on.stream)
                  : lowbit_dequantize_packed(p.data, p.bytes, data, out_dtype, &on.threads));
  return out;
}

tensor dequantize(const tensor& codes, const tensor& scales, const std::optional<tensor>& zero_points,
                  double global_scale, const std::string& format, int64_t n, int64_t k, int64_t group_n,
                  int64_t group_k, dtype type, const std::optional<tensor>& mins,
                  const std::optional<tensor>& super_scales, const std::optional<tensor>& super_mins,
                  double scale_offset) {
  const execution on(codes);
  const canonical_weight c = canonical(on, codes, scales, zero_points, global_scale, format, n, k, group_n, group_k,
                                       mins, super_scales, super_mins, scale_offset);
  const lowbit_dtype out_dtype = float_dtype(type, "dtype");
  const int64_t sizes[] = {n, k};
  tensor out = tensor::empty(sizes, type, on.where);
  check(on.cuda() ? lowbit_dequantize_cuda(&c.w, out.mutable_data(), out_dtype, on.stream)
                  : lowbit_dequantize(&c.w, out.mutable_data(), out_dtype, &on.threads));
  return out;
}

tensor encode(const tensor& w, const tensor& divisor, const std::optional<tensor>& zero_points,
              const std::string& format, int64_t group_n, int64_t group_k) {
  if (w.dim() != 2) invalid("w has shape " + shape_text(w.sizes()) + ": it must have two dimensions");
  const int64_t n = w.sizes()[0], k = w.sizes()[1];
  const execution on(w);
  on.expect(divisor, "divisor");
  on.expect(zero_points, "zero_points");
  lowbit_weight like{};
  like.format = format_called(format);
  like.n = n;
  like.k = k;
  like.group_n = group_n;
  like.group_k = group_k;
  const array_shapes shapes(like);
  lowbit_encode_args args{};
  args.format = like.format;
  args.n = n;
  args.k = k;
  args.group_n = group_n;
  args.group_k = group_k;
  args.w_dtype = float_dtype(w.type(), "w");
  args.divisor_dtype = float_dtype(divisor.type(), "divisor");
  expect_shape(divisor, "divisor", shapes.groups);
  const tensor w_rows = w.contiguous(), divisors = divisor.contiguous();
  std::optional<tensor> zeros;
  if (zero_points) {
    expect_dtype(*zero_points, "zero_points", int8_type());
    expect_shape(*zero_points, "zero_points", shapes.groups);
    zeros = zero_points->contiguous();
    args.zero_points = static_cast<const int8_t*>(zeros->data());
  }
  tensor codes = tensor::empty(shapes.codes, uint8_type(), on.where);
  args.w = w_rows.data();
  args.divisor = divisors.data();
  args.codes = codes.mutable_data();
  check(on.cuda() ? lowbit_encode_cuda(&args, on.stream) : lowbit_encode(&args, &on.threads));
  return codes;
}

}  // namespace lowbit_torch
