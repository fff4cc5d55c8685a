// weight_only in fp32 for the vectors V, decoded with the registers of DecoderV: dot products along K.
//
//   x       rows of fp32 in the order that packed codes decode to (below), zeros for padding
//   block   V::panels_at_once panels x depth columns, decoded to fp32, in L1 or L2
//   tile    V::mr rows of x by V::nr rows of W: one vector of partial sums for each pair
//
// Sums of one depth are added up lane by lane, the lanes by V::add_sum4, the depths in ascending order: the same for
// every m, so row i of y does not depend on the rows beside it.
//
// Order inside a chunk of 64 columns: byte c of dword d of a line is column 4 d + c, and a shift by 8 c brings it down,
// so the decoded order is all c = 0, then all c = 1, ...: position 16 c + d.
#pragma once

#include "cpu/neon/chunks.h"

namespace lowbit::cpu {
namespace {

constexpr int64_t depth = 512;             // columns decoded at a time: 16 rows of them are 32 KB
constexpr int64_t row_pitch = depth + 16;  // a power of two would make loads wait for stores 4 KB away

// ---- activations ----

template <class T>
inline void f32_row(const gemm_problem& p, const T* row, float* out) {
  for (int64_t c = 0; c < p.w.shape.chunks(); ++c) {
    T padded[chunk];
    const T* x = chunk_of_row(p.w.shape, row, c, padded);
    for (int byte = 0; byte < 4; ++byte)
      for (int dword = 0; dword < 16; ++dword)
        out[c * chunk + 16 * byte + dword] = load_as_f32(x, 4 * dword + byte,
                                                         sizeof(T) == 4             ? LOWBIT_F32
                                                         : p.x_dtype == LOWBIT_BF16 ? LOWBIT_BF16
                                                                                    : LOWBIT_F16);
  }
}

// ---- weights ----

// Decodes chunks of one panel. Scales and zero points of a chunk are one number a row (groups of 64 and more) or
// differ along its lanes. Narrow codes are joined to a line of bytes first.
template <class V>
class f32_decoder {
 public:
  explicit f32_decoder(const packed_view& weights)
      : w(weights),
        s(weights.shape),
        narrow(w.format->decode >= recipe::lut4),
        table(w.format->decode == recipe::lut16 || w.format->decode == recipe::lut4),
        linear(w.format->decode == recipe::linear || w.format->decode == recipe::narrow_linear) {
    for (int i = 0; table && i < 16; ++i) values[i] = w.format->values[i & ((1 << s.bits) - 1)];
  }

  // rows[r * stride ... + 64) = W[16 panel + r][chunk c]
  void chunk_rows(int64_t panel, int64_t c, float* rows, int64_t stride) {
    const int64_t column = c * chunk;
    prepare(panel, column);
    const uint8_t* lines = w.codes + s.code_offset(panel * panel_rows, column);
    const narrow_chunk planes(w, panel, column, w.format->decode == recipe::narrow_minifloat ? 8 - s.bits : 0);
    const int nibble = s.high_nibble(column) ? 4 : 0;
    for (int r = 0; r < panel_rows; ++r) {
      const uint8_t* line = lines + r * line_bytes;
      uint8_t codes[chunk];
      if (narrow) {
        planes.row(r, codes);
        line = codes;
      } else {
        __builtin_prefetch(line + prefetch_ahead);
      }
      float* out = rows + r * stride;
      if (s.unit == 64)
        one_scale(line, nibble, r, out);
      else
        many_scales(line, nibble, r, out);
    }
  }

 private:
  const packed_view& w;
  const packed_shape& s;
  const bool narrow, table, linear;  // what the recipe has
  float values[16];                  // of tables
  int64_t ready_panel = -1, ready_group = -1;
  float scale[4][panel_rows], zero[4][panel_rows], min[4][panel_rows];

  void prepare(int64_t panel, int64_t column) {
    const int64_t group = s.group_of_column(column);
    if (s.unit == 64 && panel == ready_panel && group == ready_group) return;
    ready_panel = panel;
    ready_group = group;
    for (int i = 0; i < chunk / s.unit; ++i) {
      const int64_t g = group + i < s.groups ? group + i : s.groups - 1;
      panel_scales(w, panel, g, scale[i], zero[i]);
      panel_mins(w, panel, g, min[i]);
    }
  }

  void one_scale(const uint8_t* line, int nibble, int r, float* out) const {
    if (table) {
      float scaled[16];
      for (int i = 0; i < 16; ++i) scaled[i] = __builtin_fmaf(values[i] - zero[0][r], scale[0][r], min[0][r]);
      lookup(line, nibble, V::table16(scaled), out);
    } else {
      const auto z = V::set1(zero[0][r]), f = V::set1(scale[0][r]), a = V::set1(min[0][r]);
      for_bytes(line, [&](auto value, int position) { V::store(out + position, V::fma(V::sub(value, z), f, a)); });
    }
  }

  void many_scales(const uint8_t* line, int nibble, int r, float* out) const {
    float scales[16], zeros[16], mins[16];  // of position d, for every c
    for (int d = 0; d < 16; ++d) {
      scales[d] = scale[4 * d / s.unit][r];
      zeros[d] = zero[4 * d / s.unit][r];
      mins[d] = min[4 * d / s.unit][r];
    }
    if (table)
      lookup(line, nibble, V::table16(values), out);
    else
      for_bytes(line, [&](auto value, int position) { V::store(out + position, value); });
    for (int i = 0; i < chunk; i += V::lanes) {
      const auto z = V::load(zeros + i % 16), f = V::load(scales + i % 16), a = V::load(mins + i % 16);
      V::store(out + i, V::fma(V::sub(V::load(out + i), z), f, a));
    }
  }

  static void lookup(const uint8_t* line, int nibble, typename V::table table, float* out) {
    for (int d = 0; d < 16; d += V::lanes) {
      const auto dwords = V::shift_right(V::load_bytes(line + 4 * d), nibble);
      V::store(out + d, V::template lookup16<0>(table, dwords));
      V::store(out + 16 + d, V::template lookup16<8>(table, dwords));
      V::store(out + 32 + d, V::template lookup16<16>(table, dwords));
      V::store(out + 48 + d, V::template lookup16<24>(table, dwords));
    }
  }

  // f(values, position) for the codes of a line of bytes.
  template <class F>
  void for_bytes(const uint8_t* line, const F& f) const {
    const auto bias = V::set1(static_cast<float>(w.format->integer_offset - 128));  // V::linear takes 128 off
    for (int d = 0; d < 16; d += V::lanes) {
      const auto dwords = V::load_bytes(line + 4 * d);
      for (int c = 0; c < 4; ++c) {
        const auto bytes = V::bytes_of(dwords, 8 * c);
        if (!linear)
          f(V::minifloat(bytes, w.format->fp16_shift, w.format->fp16_scale), 16 * c + d);
        else
          f(narrow ? V::sub(V::linear(bytes), bias) : V::linear(bytes), 16 * c + d);
      }
    }
  }
};

// ---- multiplication ----

// sums[i][j] += x row i . W row j over `columns`, for MR x NR of them.
template <class V, int MR, int NR>
inline void dot_tile(const float* x, int64_t x_stride, const float* rows, int64_t row_stride, int64_t columns,
                     float* sums, int64_t sums_stride) {
  typename V::f32 partial[MR][NR];
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NR; ++j) partial[i][j] = V::zero();
  for (int64_t k = 0; k < columns; k += V::lanes) {
    typename V::f32 a[MR];
    for (int i = 0; i < MR; ++i) a[i] = V::load(x + i * x_stride + k);
    for (int j = 0; j < NR; ++j) {
      const typename V::f32 b = V::load(rows + j * row_stride + k);
#pragma GCC unroll 8  // a loop of one puts the sums in memory, too, in every step (GCC 12)
      for (int i = 0; i < MR; ++i) partial[i][j] = V::fma(a[i], b, partial[i][j]);
    }
  }
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NR; j += 4)
      V::add_sum4(sums + i * sums_stride + j, partial[i][j], partial[i][j + 1], partial[i][j + 2], partial[i][j + 3]);
}

// MR rows of x by all rows of a block, NR at a time.
template <class V, int MR, int NR>
inline void dot_block(const float* x, int64_t x_stride, const float* rows, int64_t row_count, int64_t columns,
                      float* sums, int64_t sums_stride) {
  for (int64_t n = 0; n < row_count; n += NR)
    dot_tile<V, MR, NR>(x, x_stride, rows + n * row_pitch, row_pitch, columns, sums + n, sums_stride);
}

// One row keeps eight sums going, so that their latency is hidden.
template <class V>
inline void dot_rows(int64_t m, const float* x, int64_t x_stride, const float* rows, int64_t row_count, int64_t columns,
                     float* sums, int64_t sums_stride) {
  int64_t i = 0;
  for (; i + V::mr <= m; i += V::mr)
    dot_block<V, V::mr, V::nr>(x + i * x_stride, x_stride, rows, row_count, columns, sums + i * sums_stride,
                               sums_stride);
  for (; i + V::mr / 2 <= m && V::mr / 2 > 1; i += V::mr / 2)
    dot_block<V, V::mr / 2, V::nr>(x + i * x_stride, x_stride, rows, row_count, columns, sums + i * sums_stride,
                                   sums_stride);
  for (; i < m; ++i)
    dot_block<V, 1, 8>(x + i * x_stride, x_stride, rows, row_count, columns, sums + i * sums_stride, sums_stride);
}

// DecoderV: the decoder's vocabulary, V or one of other registers.
template <class V, class DecoderV = V>
lowbit_status weight_only_f32(const gemm_problem& p) {
  const packed_shape& s = p.w.shape;
  float* x =
      static_cast<float*>(scratch(scratch_slot::activations, static_cast<size_t>(p.m * s.k_packed) * sizeof(float)));
  if (!x)
    return fail(LOWBIT_OUT_OF_MEMORY, "no memory for %lld activations in fp32",
                static_cast<long long>(p.m * s.k_packed));
  parallel_for(p.m < 8 ? nullptr : p.parallel, p.m, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (p.x_dtype == LOWBIT_F32)
        f32_row(p, static_cast<const float*>(p.x) + i * p.x_stride, x + i * s.k_packed);
      else
        f32_row(p, static_cast<const uint16_t*>(p.x) + i * p.x_stride, x + i * s.k_packed);
    }
  });

  bool out_of_memory = false;
  parallel_for(p.parallel, s.panels, [&](int64_t begin, int64_t end) {
    // More panels share a pass over x when there is much of it.
    const int64_t together = p.m >= 4 * V::mr ? V::panels_at_once : 1, width = together * panel_rows;
    float* block =
        static_cast<float*>(scratch(scratch_slot::panel, static_cast<size_t>(width * row_pitch) * sizeof(float)));
    float* sums = static_cast<float*>(scratch(scratch_slot::sums, static_cast<size_t>(p.m * width) * sizeof(float)));
    if (!block || !sums) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    f32_decoder<DecoderV> decoder(p.w);
    for (int64_t panel = begin; panel < end; panel += together) {
      const int64_t panels = end - panel < together ? end - panel : together, rows = panels * panel_rows;
      std::memset(sums, 0, static_cast<size_t>(p.m * width) * sizeof(float));
      for (int64_t column = 0; column < s.k_packed; column += depth) {
        const int64_t columns = s.k_packed - column < depth ? s.k_packed - column : depth;
        for (int64_t i = 0; i < panels; ++i)
          for (int64_t c = 0; c < columns; c += chunk)
            decoder.chunk_rows(panel + i, (column + c) / chunk, block + i * panel_rows * row_pitch + c, row_pitch);
        dot_rows<V>(p.m, x + column, s.k_packed, block, rows, columns, sums, width);
      }
      const int64_t n = panel * panel_rows;
      for (int64_t m = 0; m < p.m; ++m)
        for (int64_t i = 0; i < panels; ++i)
          store_row(p, sums + m * width + i * panel_rows, m, n + i * panel_rows, p.w.global_scale);
    }
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a block of decoded weights");
  return LOWBIT_OK;
}

}  // namespace
}  // namespace lowbit::cpu
