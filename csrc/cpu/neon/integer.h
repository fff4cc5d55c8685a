// integer for the vectors V of a level of ARM: exact int32 dot products along K of unsigned codes and signed
// activations. A segment's sums become fp32 with its scales; everything before that is the same bits on any level.
//
//   q       rows of int8 in steps of 64 columns, and last, for asymmetric activations, a row of ones: its products are
//           the column sums of W
//   codes   8-bit panels as they are; others spread to bytes, V::panels_at_once panels x a segment (or part of one)
#pragma once

#include "cpu/neon/chunks.h"

namespace lowbit::cpu {
namespace {

constexpr int64_t integer_depth = 16;  // steps spread at a time: 16 rows of them are 16 KB

struct quantized_matrix {
  int8_t* q;             // [rows][steps * 64]
  int64_t rows, stride;  // the row of ones included
  float* scale;          // [m]
  int32_t* zero_point;   // [m]
  int32_t* sums;         // [m][segments]: sum of q

  // In scratch memory, the rows up to a multiple of `unit`; q is null where there is no memory.
  static quantized_matrix of(const gemm_problem& p, const integer_axis& axis, int64_t unit) {
    quantized_matrix x{};
    x.rows = p.m + (p.activation != LOWBIT_DYNAMIC_SYMMETRIC);
    x.stride = axis.steps * chunk;
    const int64_t q_bytes = round_up(x.rows, unit) * x.stride;
    const int64_t bytes = q_bytes + p.m * 4 * (2 + axis.segments());
    uint8_t* memory = static_cast<uint8_t*>(scratch(scratch_slot::activations, static_cast<size_t>(bytes)));
    if (!memory) {
      fail(LOWBIT_OUT_OF_MEMORY, "no memory for %lld bytes of quantized activations", static_cast<long long>(bytes));
      return x;
    }
    x.q = reinterpret_cast<int8_t*>(memory);
    x.scale = reinterpret_cast<float*>(memory + q_bytes);
    x.zero_point = reinterpret_cast<int32_t*>(x.scale + p.m);
    x.sums = x.zero_point + p.m;
    return x;
  }
};

// Row m of x to q[stride]; `row` has room for k values.
inline void quantize_into(const gemm_problem& p, const integer_axis& axis, const quantized_matrix& out, int64_t m,
                          float* row, int8_t* q) {
  const int64_t k = p.w.shape.k;
  const row_quantization given = p.activation == LOWBIT_STATIC ? p.given_quantization(m) : row_quantization{};
  row_quantization r = given;
  if (p.x_dtype != LOWBIT_I8) {
    float low = 0, high = 0;
    bool nan = false;
    for (int64_t i = 0; i < k; ++i) row[i] = load_as_f32(p.x, m * p.x_stride + i, p.x_dtype);
    for (int64_t i = 0; i < k; ++i) {
      nan |= row[i] != row[i];
      low = row[i] < low ? row[i] : low;
      high = row[i] > high ? row[i] : high;
    }
    if (p.activation != LOWBIT_STATIC) r = quantization_of(p.activation, low, high, nan);
    if (nan) r.scale = NAN;
  }
  out.scale[m] = r.scale;
  out.zero_point[m] = r.zero_point;
  for (int64_t segment = 0; segment < axis.segments(); ++segment) {
    const int64_t first = axis.first_step(segment), last = first + axis.steps_of(segment);
    int32_t sum = 0;
    for (int64_t step = first; step < last; ++step) {
      const int64_t column = axis.first_column(step), count = axis.columns_of(step);
      int8_t* out_step = q + step * chunk;
      for (int64_t i = 0; i < count; ++i)
        out_step[i] = p.x_dtype == LOWBIT_I8 ? static_cast<const int8_t*>(p.x)[m * p.x_stride + column + i]
                                             : quantize_value(row[column + i], r);
      for (int64_t i = count; i < chunk; ++i) out_step[i] = 0;
      for (int64_t i = 0; i < count; ++i) sum += out_step[i];
    }
    out.sums[m * axis.segments() + segment] = sum;
  }
}

inline void ones_into(const integer_axis& axis, int8_t* q) {
  for (int64_t step = 0; step < axis.steps; ++step)
    for (int64_t i = 0; i < chunk; ++i) q[step * chunk + i] = i < axis.columns_of(step);
}

// Rows of unsigned codes: row r of a block, step s, at data + r * row_stride + s * step_stride.
struct code_rows {
  const uint8_t* data;
  int64_t row_stride, step_stride;
};

// Codes of fewer than 8 bits to bytes, and 8-bit ones of groups narrower than a step to whole steps.
template <class V>
void spread_codes(const packed_view& w, const integer_axis& axis, int64_t panel, int64_t first, int64_t steps,
                  uint8_t* out) {
  const packed_shape& s = w.shape;
  for (int64_t i = 0; i < steps; ++i) {
    const int64_t column = axis.packed_column(first + i, s), count = axis.packed_columns(first + i, s);
    const uint8_t* lines = w.codes + s.code_offset(panel * panel_rows, column);
    const narrow_chunk planes(w, panel, column, 0);
    for (int r = 0; r < panel_rows; ++r) {
      uint8_t* row = out + (r * integer_depth + i) * chunk;
      if (s.bits != 4 && s.bits != 8) {
        uint8_t joined_codes[chunk];
        planes.row(r, joined_codes);
        std::memcpy(row, joined_codes + column % chunk, static_cast<size_t>(count));
        std::memset(row + count, 0, static_cast<size_t>(chunk - count));
        continue;
      }
      const uint8_t* line = lines + r * line_bytes;
      __builtin_prefetch(line + prefetch_ahead);
      if (s.bits == 8)
        std::memcpy(row, line, static_cast<size_t>(count));
      else if (count == chunk)
        V::nibbles(line, s.high_nibble(column), row);
      else
        for (int64_t j = 0; j < count; ++j) row[j] = s.high_nibble(column) ? line[j] >> 4 : line[j] & 15;
      if (count < chunk) std::memset(row + count, 0, static_cast<size_t>(chunk - count));
    }
  }
}

// sums[i][j] += q row i . codes row j over `steps`, for MR x V::nr_integer of them.
template <class V, int Bits, int MR>
inline void dot_tile_integer(const int8_t* q, int64_t q_stride, const code_rows& w, int64_t steps, int32_t* sums,
                             int64_t sums_stride) {
  constexpr int NR = V::nr_integer;
  typename V::i32 partial[MR][NR];
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NR; ++j) partial[i][j] = V::zero_i32();
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t k = 0; k < chunk; k += V::bytes) {
      typename V::i32 a[MR];
      for (int i = 0; i < MR; ++i) a[i] = V::load_bytes(q + i * q_stride + step * chunk + k);
      for (int j = 0; j < NR; ++j) {
        const uint8_t* row = w.data + j * w.row_stride + step * w.step_stride + k;
        if (MR == 1) __builtin_prefetch(row + prefetch_ahead);
        const typename V::i32 b = V::template load_codes<Bits>(row);
        for (int i = 0; i < MR; ++i) partial[i][j] = V::template dot_u8s8<Bits>(partial[i][j], b, a[i]);
      }
    }
  }
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NR; j += 4)
      V::add_sum4(sums + i * sums_stride + j, partial[i][j], partial[i][j + 1], partial[i][j + 2], partial[i][j + 3]);
}

template <class V, int Bits>
inline void dot_rows_integer(int64_t rows, const int8_t* q, int64_t q_stride, const code_rows& w, int64_t steps,
                             int32_t* sums, int64_t sums_stride) {
  int64_t i = 0;
  for (; i + V::mr_integer <= rows; i += V::mr_integer)
    dot_tile_integer<V, Bits, V::mr_integer>(q + i * q_stride, q_stride, w, steps, sums + i * sums_stride, sums_stride);
  for (; i < rows; ++i)
    dot_tile_integer<V, Bits, 1>(q + i * q_stride, q_stride, w, steps, sums + i * sums_stride, sums_stride);
}

// One panel: sums of a segment to fp32.   y[m][r] = fma(float(exact), scale[r], y[m][r])
// The sums are of codes less `bias`.
inline void scale_segment(const gemm_problem& p, const integer_axis& axis, const quantized_matrix& x, int64_t panel,
                          int64_t segment, int bias, const int32_t* exact, float* y) {
  const int64_t group = axis.group_of_segment(segment);
  float scale[panel_rows], zero[panel_rows];
  panel_scales(p.w, panel, group, scale, zero);
  int32_t offset[panel_rows], weight_sum[panel_rows] = {};
  int32_t columns = 0;
  for (int64_t step = axis.first_step(segment); step < axis.first_step(segment) + axis.steps_of(segment); ++step)
    columns += static_cast<int32_t>(axis.columns_of(step));
  for (int r = 0; r < panel_rows; ++r) {
    offset[r] = p.w.format->integer_offset - bias + static_cast<int32_t>(zero[r]);
    if (x.rows > p.m) weight_sum[r] = exact[p.m * panel_rows + r] - columns * offset[r];
  }
  for (int64_t m = 0; m < p.m; ++m) {
    const int32_t q_sum = x.sums[m * axis.segments() + segment], x_zero = x.zero_point[m];
    for (int r = 0; r < panel_rows; ++r) {
      const int32_t sum = exact[m * panel_rows + r] - offset[r] * q_sum - weight_sum[r] * x_zero;
      y[m * panel_rows + r] = __builtin_fmaf(static_cast<float>(sum), scale[r], y[m * panel_rows + r]);
    }
  }
}

// The codes of one panel and a run of steps, from row r on.
inline code_rows codes_of(const packed_view& w, const integer_axis& axis, bool spread, const uint8_t* block,
                          int64_t panel, int64_t r, int64_t step) {
  if (spread) return {block + r * integer_depth * chunk, integer_depth * chunk, chunk};
  const int64_t column = axis.packed_column(step, w.shape);
  return {w.codes + w.shape.code_offset(panel * panel_rows + r, column), line_bytes, panel_rows * line_bytes};
}

template <class V, int Bits>
lowbit_status integer_panels(const gemm_problem& p, const integer_axis& axis, const quantized_matrix& x) {
  constexpr int64_t rows_in_l1 = 24;  // of q: 24 KB of a run of steps
  const bool spread = Bits != 8 || p.w.shape.unit != chunk;
  // More panels share a pass over q when there is much of it.
  const int64_t together = x.rows > rows_in_l1 ? V::panels_at_once : 1, sums = x.rows * panel_rows;
  bool out_of_memory = false;
  parallel_for(p.parallel, p.w.shape.panels, [&](int64_t begin, int64_t end) {
    constexpr int64_t block_bytes = panel_rows * integer_depth * chunk;
    uint8_t* codes = static_cast<uint8_t*>(scratch(scratch_slot::panel, static_cast<size_t>(together * block_bytes)));
    int32_t* exact =
        static_cast<int32_t*>(scratch(scratch_slot::sums, static_cast<size_t>(2 * together * sums) * sizeof(int32_t)));
    if (!codes || !exact) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    float* y = reinterpret_cast<float*>(exact + together * sums);
    for (int64_t panel = begin; panel < end; panel += together) {
      const int64_t panels = end - panel < together ? end - panel : together;
      std::memset(y, 0, static_cast<size_t>(panels * sums) * sizeof(float));
      for (int64_t segment = 0; segment < axis.segments(); ++segment) {
        std::memset(exact, 0, static_cast<size_t>(panels * sums) * sizeof(int32_t));
        const int64_t first = axis.first_step(segment), last = first + axis.steps_of(segment);
        for (int64_t step = first; step < last; step += integer_depth) {
          const int64_t steps = last - step < integer_depth ? last - step : integer_depth;
          if (spread)
            for (int64_t i = 0; i < panels; ++i)
              spread_codes<V>(p.w, axis, panel + i, step, steps, codes + i * block_bytes);
          for (int64_t m = 0; m < x.rows; m += rows_in_l1) {
            const int64_t rows = x.rows - m < rows_in_l1 ? x.rows - m : rows_in_l1;
            for (int64_t i = 0; i < panels; ++i)
              for (int64_t r = 0; r < panel_rows; r += V::nr_integer)
                dot_rows_integer<V, Bits>(rows, x.q + m * x.stride + step * chunk, x.stride,
                                          codes_of(p.w, axis, spread, codes + i * block_bytes, panel + i, r, step),
                                          steps, exact + i * sums + m * panel_rows + r, panel_rows);
          }
        }
        for (int64_t i = 0; i < panels; ++i)
          scale_segment(p, axis, x, panel + i, segment, V::template code_bias<Bits>, exact + i * sums, y + i * sums);
      }
      for (int64_t i = 0; i < panels; ++i)
        for (int64_t m = 0; m < p.m; ++m)
          store_row(p, y + i * sums + m * panel_rows, m, (panel + i) * panel_rows, x.scale[m]);
    }
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a panel of codes and its sums");
  return LOWBIT_OK;
}

template <class V>
lowbit_status integer(const gemm_problem& p) {
  const integer_axis axis(p.w.shape);
  const quantized_matrix x = quantized_matrix::of(p, axis, 1);
  if (!x.q) return LOWBIT_OUT_OF_MEMORY;
  bool out_of_memory = false;
  parallel_for(p.m < 2 * num_threads(p.parallel) ? nullptr : p.parallel, p.m, [&](int64_t begin, int64_t end) {
    float* row = static_cast<float*>(scratch(scratch_slot::panel, static_cast<size_t>(p.w.shape.k) * sizeof(float)));
    if (!row) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t m = begin; m < end; ++m) quantize_into(p, axis, x, m, row, x.q + m * x.stride);
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a row of activations");
  if (x.rows > p.m) ones_into(axis, x.q + p.m * x.stride);
  return p.w.shape.bits == 8 ? integer_panels<V, 8>(p, axis, x) : integer_panels<V, joined>(p, axis, x);
}

}  // namespace
}  // namespace lowbit::cpu
