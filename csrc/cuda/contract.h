// What every CUDA kernel is given and what it owes; equations as in gemm/contract.h. The edge has checked all of it.
//
//   weight_only   y = to_y(fma(sum_k x W, global, bias)): codes are decoded to x's type, bf16 or fp16; sums are fp32 in
//                 one order of K for every m, slices of K included.
//                 |y - exact| <= ((K + 64) 2^-23 + r u) sum|x W|, plus the rounding to y. u is 2^-8 for bf16, 2^-11
//                 for fp16, r the roundings of a weight.
//     sm80        Scales of any range multiply fp32 sums: r is 1 for tables whose values x's type cannot hold (nf4),
//                 else 0. Sums below 2^-112 may be denormal.
//     sm90        So where K is one group. Else scales multiply weights in x's type: r counts one more for the
//                 product and one for a scale that is not of x's type; e8m0 and e4m3 are exact. bf16 holds scales and
//                 weights in 2^-60 .. 2^64. fp16 x takes groups of fp16 and e4m3 scales alone (others are sm80's): it
//                 holds weights up to 4094 and scales of fp4 up to 511, and adds 2^-25 sum|x| (|value - zero_point| +
//                 1) for denormals.
//   integer       the equations of gemm/contract.h to the bit.
//   fp8           x and W in e4m3: y = to_y(fma(sum_k xq Wq, x_scale w_scale, bias)), or block by block of K where
//                 scales are. The tensor core's own sums have fewer bits than fp32 on some chips. promoted: they are
//                 added in fp32 every 128 columns. fast: less often, as the kernel's file says (sm90: never, sm89:
//                 every 512), but at every scale of a block.
//
// Kernels run on the given stream, allocate nothing, never synchronise, write y and the workspace only. Any m >= 1, n,
// k.
#pragma once

#include "formats/format.h"
#include "gemm/contract.h"
#include "layout/fragments.h"

namespace lowbit::cuda {

// A packed weight in device memory. Offsets are from `data`; the header's fp32 global scale is read by kernels where
// the format has one.
struct packed_weight {
  fragment_shape shape;
  const format_row* format;
  const uint8_t* data;
  int64_t codes_offset, scales_offset, zero_points_offset, column_sums_offset;  // 0: there are none
  int scale_dtype;

  const uint8_t* codes() const { return data + codes_offset; }
  const void* scales() const { return data + scales_offset; }
  const int8_t* zero_points() const {
    return zero_points_offset ? reinterpret_cast<const int8_t*>(data + zero_points_offset) : nullptr;
  }
  // Sums of stored codes minus integer_offset over each group's columns, int32, [strips][groups][64]: integer formats.
  const int32_t* column_sums() const { return reinterpret_cast<const int32_t*>(data + column_sums_offset); }
  const float* global_scale() const {  // of the header
    return format->global_scale ? reinterpret_cast<const float*>(data + offsetof(packed_header, global_scale))
                                : nullptr;
  }
};

enum class accumulation : int32_t { promoted = 0, fast = 1 };  // fp8 only

// Pointers are device pointers.
struct gemm_problem {
  packed_weight w;
  int64_t m;
  const void* x;
  int x_dtype;  // F16, BF16 (F32 is converted before); I8, E4M3 where already quantized
  int64_t x_stride;
  const void* bias;  // or null
  int bias_dtype;
  void* y;
  int y_dtype;
  int64_t y_stride;
  lowbit_activation activation;
  const float* x_scale;  // per tensor, per row, or [m][ceil(k / 128)] with x_group = 128
  const int32_t* x_zero_point;
  int64_t num_x_scales;
  int64_t x_group;  // 0: one scale for a row or the tensor
  accumulation accumulate;
  void* workspace;  // 256-byte aligned, of workspace() bytes
  void* stream;
};

struct device_info {
  int arch;  // 80, 89, 90, ...
  int sms;
  int64_t shared_bytes;  // a CTA may have at most
  int64_t l2_bytes;
};

struct kernel_row {
  const char* name;  // family_compute_arch_tile
  lowbit_family family;
  int min_arch, max_arch;  // inclusive; 80 .. 999 runs everywhere
  uint32_t recipes;        // bit for each recipe it decodes
  uint32_t x_dtypes;       // bit for each lowbit_dtype of x
  int mr, nr, kr;          // tile: rows of x, rows of W, depth of one step
  bool batch_invariant;
  const char* (*refuses)(const gemm_problem&, const device_info&);  // a reason of its own, or null; may be null
  int64_t (*workspace)(const gemm_problem&, const device_info&);    // bytes; depends on m, n, k only
  lowbit_status (*run)(const gemm_problem&, const device_info&);
};

}  // namespace lowbit::cuda
