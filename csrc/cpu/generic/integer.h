// integer, written once for every vector width V: exact int32 dot products of unsigned codes and signed activations. A
// segment's sums become fp32 with its scales; everything before that is the same bits in any order, so few rows of x
// and many are multiplied in two ways (integer_few.h, integer_many.h).
//
//   q       rows of int8 in the order of packed columns, and last, for asymmetric activations, a row of ones: its
//           products are the column sums of W
#pragma once

#include "cpu/generic/integer_few.h"
#include "cpu/generic/integer_many.h"

namespace lowbit::cpu {
namespace {

template <class V, int Bits>
lowbit_status integer_of(const gemm_problem& p) {
  const packed_shape& s = p.w.shape;
  const integer_segments segments(s);
  quantized_matrix x{};
  x.rows = p.m + (p.activation != LOWBIT_DYNAMIC_SYMMETRIC);
  // A power of two would send all rows to the same lines of L1.
  x.stride = s.k_packed / 4 * V::template code_parts<Bits> + 16;
  const int64_t dwords = x.rows * (x.stride + segments.count()) + 2 * p.m;
  x.q = static_cast<int32_t*>(scratch(scratch_slot::activations, static_cast<size_t>(dwords) * sizeof(int32_t)));
  if (!x.q)
    return fail(LOWBIT_OUT_OF_MEMORY, "no memory for %lld bytes of quantized activations",
                static_cast<long long>(dwords * 4));
  x.scale = reinterpret_cast<float*>(x.q + x.rows * x.stride);
  x.zero_point = reinterpret_cast<int32_t*>(x.scale + p.m);
  x.sums = x.zero_point + p.m;
  bool out_of_memory = false;
  parallel_for(p.m < 2 * num_threads(p.parallel) ? nullptr : p.parallel, x.rows, [&](int64_t begin, int64_t end) {
    float* row = static_cast<float*>(scratch(scratch_slot::panel, static_cast<size_t>(s.k) * (sizeof(float) + 1)));
    if (!row) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t m = begin; m < end; ++m) {
      if (m < p.m) {
        quantize_into<V, Bits>(p, segments, x, m, row);
      } else {
        std::memset(row, 1, static_cast<size_t>(s.k));
        put_row<V, Bits>(s, segments, reinterpret_cast<const int8_t*>(row), x.q + m * x.stride,
                         x.sums + m * segments.count());
      }
      if (!integer_operands::has_zeros(p))  // codes have one offset: sums of values start from those of -offset
        for (int64_t i = 0; i < segments.count(); ++i) x.sums[m * segments.count() + i] *= -p.w.format->integer_offset;
    }
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a row of activations");
  const integer_operands operands(p, segments, x);
  parallel_for(p.parallel, s.panels, [&](int64_t begin, int64_t end) {
    if (integer_few_call<V, Bits>::takes(p.m, segments))
      integer_few_call<V, Bits>(operands).run(begin, end);
    else if (!integer_many_call<V, Bits>(operands).run(begin, end))
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a panel of codes and its sums");
  return LOWBIT_OK;
}

template <class V>
lowbit_status integer(const gemm_problem& p) {
  switch (p.w.shape.bits) {
    case 4:
      return integer_of<V, 4>(p);
    case 8:
      return integer_of<V, 8>(p);
    default:
      return integer_of<V, joined>(p);
  }
}

}  // namespace
}  // namespace lowbit::cpu
