// integer with USMMLA: pairs of rows of unsigned codes by pairs of rows of int8.
//
//   x       rows of q two by two, in units (pairs.h); last, for asymmetric activations, the row of ones; below an odd
//           last row zeros
//   codes   a panel x integer_depth steps, spread to bytes, rows two by two: 16 KB
//
// A single row goes to the dot products of neon/integer.h, which read 8-bit lines where they lie.
#pragma once

#include "cpu/neon/integer.h"
#include "cpu/neon_dotprod/simd.h"
#include "cpu/neon_i8mm/pairs.h"

namespace lowbit::cpu {
namespace {

struct neon_i8mm_vectors : neon_dotprod_vectors {
  template <int Bits>
  static constexpr int code_bias = 0;
  template <int Bits>
  static i32 load_codes(const uint8_t* p) {
    return load_bytes(p);
  }
  template <int Bits>
  static i32 dot_u8s8(i32 sums, i32 codes, i32 q) {
    return vusdotq_s32(sums, vreinterpretq_u8_s32(codes), vreinterpretq_s8_s32(q));
  }
};

struct usmmla {
  using number = int32_t;
  using sum = int32x4_t;
  static sum zero() { return vdupq_n_s32(0); }
  static sum step(sum s, uint8x16_t w, uint8x16_t x) { return vusmmlaq_s32(s, w, vreinterpretq_s8_u8(x)); }
  // Four outputs of two rows.
  static void add4(int32_t* out, int64_t stride, sum first, sum second) {
    vst1q_s32(out, vaddq_s32(vld1q_s32(out), vuzp1q_s32(first, second)));
    vst1q_s32(out + stride, vaddq_s32(vld1q_s32(out + stride), vuzp2q_s32(first, second)));
  }
};

constexpr int64_t step_bytes = 2 * chunk;  // of a pair

// Rows 2 i and 2 i + 1 of q, and the ones.
inline void quantize_pair(const gemm_problem& p, const integer_axis& axis, const quantized_matrix& x, int64_t pair,
                          float* row, int8_t* both) {
  for (int64_t i = 0; i < 2; ++i) {
    const int64_t m = 2 * pair + i;
    int8_t* q = both + i * x.stride;
    if (m < p.m)
      quantize_into(p, axis, x, m, row, q);
    else if (m < x.rows)
      ones_into(axis, q);
    else
      std::memset(q, 0, static_cast<size_t>(x.stride));
  }
  uint8_t* out = reinterpret_cast<uint8_t*>(x.q) + 2 * pair * x.stride;
  const uint8_t* even = reinterpret_cast<const uint8_t*>(both);
  for (int64_t i = 0; i < x.stride; i += 16)
    store_units(out + 2 * i, vld1q_u8(even + i), vld1q_u8(even + x.stride + i));
}

// 16 codes of a line.
template <int Bits>
inline uint8x16_t load_codes16(const uint8_t* line, bool high) {
  const uint8x16_t codes = vld1q_u8(line);
  if (Bits != 4) return codes;
  return high ? vshrq_n_u8(codes, 4) : vandq_u8(codes, vdupq_n_u8(15));
}

// out[pair][step]: codes as bytes, in units. Steps of narrow groups end with zeros.
template <int Bits>
void spread_pairs(const packed_view& w, const integer_axis& axis, int64_t panel, int64_t first, int64_t steps,
                  uint8_t* out) {
  const packed_shape& s = w.shape;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t column = axis.packed_column(first + step, s), count = axis.packed_columns(first + step, s);
    const uint8_t* lines = w.codes + s.code_offset(panel * panel_rows, column);
    const narrow_chunk planes(w, panel, column, 0);
    const bool high = s.high_nibble(column);
    for (int r = 0; r < panel_rows; r += 2) {
      const uint8_t* line = lines + r * line_bytes;
      uint8_t both[2 * line_bytes];
      if constexpr (Bits == joined) {
        planes.row(r, both);
        planes.row(r + 1, both + line_bytes);
        line = both + column % chunk;
      }
      uint8_t* units = out + (r / 2 * integer_depth + step) * step_bytes;
      if constexpr (Bits != joined) {
        __builtin_prefetch(line + prefetch_ahead);
        __builtin_prefetch(line + line_bytes + prefetch_ahead);
      }
      for (int64_t i = 0; i < count; i += 16)
        store_units(units + 2 * i, load_codes16<Bits>(line + i, high), load_codes16<Bits>(line + line_bytes + i, high));
      if (count < chunk) std::memset(units + 2 * count, 0, static_cast<size_t>(2 * (chunk - count)));
    }
  }
}

template <int Bits>
lowbit_status integer_pair_panels(const gemm_problem& p, const integer_axis& axis, const quantized_matrix& x) {
  const int64_t pairs = ceil_div(x.rows, 2), sums = 2 * pairs * panel_rows;
  bool out_of_memory = false;
  parallel_for(p.parallel, p.w.shape.panels, [&](int64_t begin, int64_t end) {
    constexpr int64_t pair_bytes = integer_depth * step_bytes;
    uint8_t* codes = static_cast<uint8_t*>(scratch(scratch_slot::panel, panel_pairs * pair_bytes));
    int32_t* exact =
        static_cast<int32_t*>(scratch(scratch_slot::sums, static_cast<size_t>(2 * sums) * sizeof(int32_t)));
    if (!codes || !exact) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    float* y = reinterpret_cast<float*>(exact + sums);
    for (int64_t panel = begin; panel < end; ++panel) {
      std::memset(y, 0, static_cast<size_t>(sums) * sizeof(float));
      for (int64_t segment = 0; segment < axis.segments(); ++segment) {
        std::memset(exact, 0, static_cast<size_t>(sums) * sizeof(int32_t));
        const int64_t first = axis.first_step(segment), last = first + axis.steps_of(segment);
        for (int64_t step = first; step < last; step += integer_depth) {
          const int64_t steps = last - step < integer_depth ? last - step : integer_depth;
          spread_pairs<Bits>(p.w, axis, panel, step, steps, codes);
          multiply_panel<usmmla>(pairs, reinterpret_cast<const uint8_t*>(x.q) + step * step_bytes, 2 * x.stride, codes,
                                 pair_bytes, steps * (step_bytes / unit_bytes), exact);
        }
        scale_segment(p, axis, x, panel, segment, 0, exact, y);
      }
      for (int64_t m = 0; m < p.m; ++m) store_row(p, y + m * panel_rows, m, panel * panel_rows, x.scale[m]);
    }
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a panel of codes and its sums");
  return LOWBIT_OK;
}

lowbit_status integer_pairs(const gemm_problem& p) {
  const integer_axis axis(p.w.shape);
  if (p.m == 1 && p.activation == LOWBIT_DYNAMIC_SYMMETRIC) return integer<neon_i8mm_vectors>(p);
  const quantized_matrix x = quantized_matrix::of(p, axis, 2);
  if (!x.q) return LOWBIT_OUT_OF_MEMORY;
  bool out_of_memory = false;
  parallel_for(
      p.m < 2 * num_threads(p.parallel) ? nullptr : p.parallel, ceil_div(x.rows, 2), [&](int64_t begin, int64_t end) {
        float* row =
            static_cast<float*>(scratch(scratch_slot::panel, static_cast<size_t>(p.w.shape.k) * sizeof(float)));
        int8_t* both = static_cast<int8_t*>(scratch(scratch_slot::sums, static_cast<size_t>(2 * x.stride)));
        if (!row || !both) {
          __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
          return;
        }
        for (int64_t pair = begin; pair < end; ++pair) quantize_pair(p, axis, x, pair, row, both);
      });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a pair of rows of activations");
  switch (p.w.shape.bits) {
    case 4:
      return integer_pair_panels<4>(p, axis, x);
    case 8:
      return integer_pair_panels<8>(p, axis, x);
    default:
      return integer_pair_panels<joined>(p, axis, x);
  }
}

}  // namespace
}  // namespace lowbit::cpu
