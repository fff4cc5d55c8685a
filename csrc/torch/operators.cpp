// The schemas of torch.ops.lowbit, and their kernels for CPU and CUDA tensors: all tensors of a call on one device, and
// its results there. Fake kernels and gradients: lowbit/ops.
//
//   x            [..., k] float32, float16 or bfloat16, any strides
//   packed       uint8 [bytes], as pack returns it for the device it is on
//   description  what the packed weight is, as lowbit_weight_to_text writes it: needed on CUDA, where its header cannot
//                be read without waiting for the device
//   codes        uint8 [n, ceil(k * bits / 8)]
//   scales       [ceil(n / group_n), ceil(k / group_k)] float32, float16, bfloat16, or uint8 where the format has
//                e8m0 or e4m3 scales
//   zero_points  int8, the shape of scales
//   mins         the shape and dtype of scales, of formats with minima
//   super_*      of formats with scales of two levels: float16 [n, ceil(groups / super_groups)], or float32
//                [ceil(n * groups / super_groups)]
#include "operators.h"

#include <torch/csrc/stable/library.h>

#include "box.h"

using namespace lowbit_torch;

STABLE_TORCH_LIBRARY(lowbit, m) {
  // All three: function (silu, gelu, gelu_tanh, relu) of x W^T + bias, times `multiply` or plus `residual`, either
  // [..., n] float32, float16 or bfloat16, all in fp32.
  // [..., n] in the dtype of x. bias [n].
  m.def(
      "weight_only(Tensor x, Tensor packed, Tensor? bias, SymInt n, str? description=None, str? function=None, "
      "Tensor? multiply=None, Tensor? residual=None) -> Tensor");
  // [..., n] in out_dtype. x_scale float32 [1] or [rows] with x_zero_point int32 of the same shape: x is quantized
  // with them, or is int8 already. Without: each row is quantized by its own range, symmetric or not.
  m.def(
      "integer(Tensor x, Tensor packed, Tensor? bias, SymInt n, Tensor? x_scale, Tensor? x_zero_point, "
      "bool symmetric, ScalarType out_dtype, str? description=None, str? function=None, Tensor? multiply=None, "
      "Tensor? residual=None) -> Tensor");
  // [..., n] in out_dtype; CUDA alone. x float8_e4m3fn with x_scale, or quantized to it. x_scale float32 [1], [rows],
  // or [rows, ceil(k / 128)] with x_group 128. fast: sums are not promoted to fp32 every 128 columns.
  m.def(
      "fp8(Tensor x, Tensor packed, Tensor? bias, SymInt n, Tensor? x_scale, int x_group, bool fast, "
      "ScalarType out_dtype, str? description=None, str? function=None, Tensor? multiply=None, "
      "Tensor? residual=None) -> Tensor");
  // int8 [m, k], float32 [m], int32 [m] for x [m, k], as integer quantizes it.
  m.def("quantize_rows(Tensor x, bool symmetric) -> (Tensor q, Tensor scale, Tensor zero_point)");
  // x [m, k] in a low precision: lowbit_quantize. format: int8, int8_asymmetric, fp8_e4m3, fp8_e4m3_block, mxfp8,
  // mxfp4, nvfp4; source: plain, rms_norm (other: a residual; weight [k]; epsilon), silu_mul (other: up). q int8 [m, k]
  // or uint8 [m, ceil(k * bits / 8)]; scale float32 [m], [m, blocks] of the format's dtype (8-bit floats as uint8), or
  // uint8 swizzled; zero_point int32 [m] or [0]; sum [m, k] of rms_norm with a residual, or [0, k].
  m.def(
      "quantize_activation(Tensor x, str format, str source, Tensor? other, Tensor? weight, float epsilon, "
      "Tensor? global_scale, bool power_of_two, bool swizzled) -> (Tensor q, Tensor scale, Tensor zero_point, "
      "Tensor sum)");

  m.def(
      "pack(Tensor codes, Tensor scales, Tensor? zero_points, float global_scale, str format, SymInt n, SymInt k, "
      "SymInt group_n, SymInt group_k, Tensor? mins=None, Tensor? super_scales=None, Tensor? super_mins=None, "
      "float scale_offset=0.0) -> Tensor");
  m.def(
      "unpack(Tensor packed, Tensor(a!) codes, Tensor(b!) scales, Tensor(c!)? zero_points, Tensor(d!)? mins=None, "
      "Tensor(e!)? super_scales=None, Tensor(f!)? super_mins=None, str? description=None) -> ()");
  // [n, k] in dtype.
  m.def("dequantize_packed(Tensor packed, SymInt n, SymInt k, ScalarType dtype, str? description=None) -> Tensor");
  m.def(
      "dequantize(Tensor codes, Tensor scales, Tensor? zero_points, float global_scale, str format, SymInt n, "
      "SymInt k, SymInt group_n, SymInt group_k, ScalarType dtype, Tensor? mins=None, Tensor? super_scales=None, "
      "Tensor? super_mins=None, float scale_offset=0.0) -> Tensor");
  // codes for w [n, k] and divisor, of the shape of scales.
  m.def("encode(Tensor w, Tensor divisor, Tensor? zero_points, str format, SymInt group_n, SymInt group_k) -> Tensor");
}

namespace {

// The same functions for both: they look where their tensors are.
template <class Library>
void implement(Library& m) {
  m.impl("weight_only", box<&weight_only>);
  m.impl("integer", box<&integer>);
  m.impl("fp8", box<&fp8>);
  m.impl("quantize_rows", box<&quantize_rows>);
  m.impl("quantize_activation", box<&quantize_activation>);
  m.impl("pack", box<&pack>);
  m.impl("unpack", box<&unpack>);
  m.impl("dequantize_packed", box<&dequantize_packed>);
  m.impl("dequantize", box<&dequantize>);
  m.impl("encode", box<&encode>);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(lowbit, CUDA, m) { implement(m); }
