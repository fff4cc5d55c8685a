// pack, unpack, dequantize, encode: between the canonical form of a weight, its packed form and plain floats.
#include "call.h"
#include "operators.h"

namespace lowbit_torch {
namespace {

// A canonical weight whose tensors are checked and kept.
struct canonical_weight {
  tensor codes, scales;
  std::optional<tensor> zero_points;
  lowbit_weight w;
};

void expect_positive(const char* first, int64_t a, const char* second, int64_t b) {
  if (a >= 1 && b >= 1) return;
  invalid(std::string(first) + " = " + std::to_string(a) + ", " + second + " = " + std::to_string(b) +
          ": both must be at least 1");
}

canonical_weight canonical(const tensor& codes, const tensor& scales, const std::optional<tensor>& zero_points,
                           double global_scale, const std::string& format, int64_t n, int64_t k, int64_t group_n,
                           int64_t group_k) {
  expect_positive("n", n, "k", k);
  expect_positive("group_n", group_n, "group_k", group_k);
  lowbit_weight w{};
  w.format = format_called(format);
  lowbit_format_info info;
  check(lowbit_format_get(w.format, &info));
  w.n = n;
  w.k = k;
  w.group_n = group_n;
  w.group_k = group_k;
  w.global_scale = static_cast<float>(global_scale);
  const int64_t groups_n = ceil_div(n, group_n), groups_k = ceil_div(k, group_k);
  expect_dtype(codes, "codes", uint8_type());
  expect_shape(codes, "codes", {n, ceil_div(k * info.bits, 8)});
  if (info.scale_dtype < 0) {
    w.scale_dtype = float_dtype(scales.type(), "scales");
  } else {
    w.scale_dtype = static_cast<lowbit_dtype>(info.scale_dtype);
    expect_dtype(scales, "scales", torch_dtype(w.scale_dtype));
  }
  expect_shape(scales, "scales", {groups_n, groups_k});
  canonical_weight c{codes.contiguous(), scales.contiguous(), std::nullopt, w};
  if (zero_points) {
    expect_dtype(*zero_points, "zero_points", int8_type());
    expect_shape(*zero_points, "zero_points", {groups_n, groups_k});
    c.zero_points = zero_points->contiguous();
    c.w.zero_points = static_cast<const int8_t*>(c.zero_points->data());
  }
  c.w.codes = c.codes.data();
  c.w.scales = c.scales.data();
  return c;
}

}  // namespace

tensor pack(const tensor& codes, const tensor& scales, const std::optional<tensor>& zero_points, double global_scale,
            const std::string& format, int64_t n, int64_t k, int64_t group_n, int64_t group_k) {
  const canonical_weight c = canonical(codes, scales, zero_points, global_scale, format, n, k, group_n, group_k);
  size_t bytes;
  check(lowbit_packed_bytes(&c.w, &bytes));
  const int64_t sizes[] = {static_cast<int64_t>(bytes)};
  tensor packed = tensor::empty(sizes, uint8_type());
  const lowbit_parallel threads = parallel();
  check(lowbit_pack(&c.w, packed.mutable_data(), bytes, &threads));
  return packed;
}

void unpack(const tensor& packed, const tensor& codes, const tensor& scales, const std::optional<tensor>& zero_points) {
  const packed_weight p(packed);
  const lowbit_weight& w = p.description;
  lowbit_format_info info;
  check(lowbit_format_get(w.format, &info));
  const int64_t groups_n = ceil_div(w.n, w.group_n), groups_k = ceil_div(w.k, w.group_k);
  expect_dtype(codes, "codes", uint8_type());
  expect_shape(codes, "codes", {w.n, ceil_div(w.k * info.bits, 8)});
  expect_contiguous(codes, "codes");
  expect_dtype(scales, "scales", torch_dtype(w.scale_dtype));
  expect_shape(scales, "scales", {groups_n, groups_k});
  expect_contiguous(scales, "scales");
  int8_t* zeros = nullptr;
  if (zero_points) {
    expect_dtype(*zero_points, "zero_points", int8_type());
    expect_shape(*zero_points, "zero_points", {groups_n, groups_k});
    expect_contiguous(*zero_points, "zero_points");
    if (!w.zero_points) invalid("zero_points are given, but the packed weight has none");
    zeros = static_cast<int8_t*>(zero_points->mutable_data());
  }
  const lowbit_parallel threads = parallel();
  check(lowbit_unpack(p.data, p.bytes, codes.mutable_data(), scales.mutable_data(), zeros, &threads));
}

tensor dequantize_packed(const tensor& packed, int64_t n, int64_t k, dtype type) {
  const packed_weight p(packed);
  p.expect_size(n, k);
  const lowbit_dtype out_dtype = float_dtype(type, "dtype");
  const int64_t sizes[] = {n, k};
  tensor out = tensor::empty(sizes, type);
  const lowbit_parallel threads = parallel();
  check(lowbit_dequantize_packed(p.data, p.bytes, out.mutable_data(), out_dtype, &threads));
  return out;
}

tensor dequantize(const tensor& codes, const tensor& scales, const std::optional<tensor>& zero_points,
                  double global_scale, const std::string& format, int64_t n, int64_t k, int64_t group_n,
                  int64_t group_k, dtype type) {
  const canonical_weight c = canonical(codes, scales, zero_points, global_scale, format, n, k, group_n, group_k);
  const lowbit_dtype out_dtype = float_dtype(type, "dtype");
  const int64_t sizes[] = {n, k};
  tensor out = tensor::empty(sizes, type);
  const lowbit_parallel threads = parallel();
  check(lowbit_dequantize(&c.w, out.mutable_data(), out_dtype, &threads));
  return out;
}

tensor encode(const tensor& w, const tensor& divisor, const std::optional<tensor>& zero_points,
              const std::string& format, int64_t group_n, int64_t group_k) {
  if (w.dim() != 2) invalid("w has shape " + shape_text(w.sizes()) + ": it must have two dimensions");
  const int64_t n = w.sizes()[0], k = w.sizes()[1];
  expect_positive("n", n, "k", k);
  expect_positive("group_n", group_n, "group_k", group_k);
  lowbit_encode_args args{};
  args.format = format_called(format);
  lowbit_format_info info;
  check(lowbit_format_get(args.format, &info));
  args.n = n;
  args.k = k;
  args.group_n = group_n;
  args.group_k = group_k;
  args.w_dtype = float_dtype(w.type(), "w");
  args.divisor_dtype = float_dtype(divisor.type(), "divisor");
  const int64_t groups_n = ceil_div(n, group_n), groups_k = ceil_div(k, group_k);
  expect_shape(divisor, "divisor", {groups_n, groups_k});
  const tensor w_rows = w.contiguous(), divisors = divisor.contiguous();
  std::optional<tensor> zeros;
  if (zero_points) {
    expect_dtype(*zero_points, "zero_points", int8_type());
    expect_shape(*zero_points, "zero_points", {groups_n, groups_k});
    zeros = zero_points->contiguous();
    args.zero_points = static_cast<const int8_t*>(zeros->data());
  }
  const int64_t sizes[] = {n, ceil_div(k * info.bits, 8)};
  tensor codes = tensor::empty(sizes, uint8_type());
  args.w = w_rows.data();
  args.divisor = divisors.data();
  args.codes = codes.mutable_data();
  const lowbit_parallel threads = parallel();
  check(lowbit_encode(&args, &threads));
  return codes;
}

}  // namespace lowbit_torch
