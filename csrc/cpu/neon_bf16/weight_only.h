// weight_only with BFMMLA: W is decoded to bf16, x is rounded to it; both two rows by two (neon_i8mm/pairs.h).
//
//   x       [pairs of rows][k_packed / 4 units], zeros for padding and below an odd last row
//   block   a panel x depth columns, decoded: 16 KB, in L1
//
// A single row, too, is multiplied as half of a pair: every m has the same sums in the same order.
#pragma once

#include "cpu/neon_bf16/decode.h"

namespace lowbit::cpu {
namespace {

constexpr int64_t depth = 512;  // columns decoded at a time

struct bfmmla {
  using number = float;
  using sum = float32x4_t;
  static sum zero() { return vdupq_n_f32(0); }
  static sum step(sum s, uint8x16_t w, uint8x16_t x) {
    return vbfmmlaq_f32(s, vreinterpretq_bf16_u8(w), vreinterpretq_bf16_u8(x));
  }
  // Four outputs of two rows.
  static void add4(float* out, int64_t stride, sum first, sum second) {
    vst1q_f32(out, vaddq_f32(vld1q_f32(out), vuzp1q_f32(first, second)));
    vst1q_f32(out + stride, vaddq_f32(vld1q_f32(out + stride), vuzp2q_f32(first, second)));
  }
};

// ---- activations ----

// 8 values as bf16.
inline uint8x16_t load_bf16(const uint16_t* x, int dtype) {
  if (dtype == LOWBIT_BF16) return vreinterpretq_u8_u16(vld1q_u16(x));
  const float16x8_t half = vreinterpretq_f16_u16(vld1q_u16(x));
  return vreinterpretq_u8_bf16(
      vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(vcvt_f32_f16(vget_low_f16(half))), vcvt_high_f32_f16(half)));
}

inline void bf16_pair(const gemm_problem& p, int64_t pair, uint8_t* out) {
  const uint16_t* x = static_cast<const uint16_t*>(p.x) + 2 * pair * p.x_stride;
  const bool odd_row = 2 * pair + 1 < p.m;
  for (int64_t c = 0; c < p.w.shape.chunks(); ++c) {
    uint16_t padded[2][chunk];
    const uint16_t* even = chunk_of_row(p.w.shape, x, c, padded[0]);
    const uint16_t* odd = odd_row ? chunk_of_row(p.w.shape, x + p.x_stride, c, padded[1]) : nullptr;
    for (int64_t i = 0; i < chunk; i += 8, out += 2 * unit_bytes)
      store_units(out, load_bf16(even + i, p.x_dtype), odd ? load_bf16(odd + i, p.x_dtype) : vdupq_n_u8(0));
  }
}

// ---- multiplication ----

lowbit_status weight_only_bf16(const gemm_problem& p) {
  const packed_shape& s = p.w.shape;
  const int64_t pairs = ceil_div(p.m, 2), x_pair_bytes = s.k_packed * 4;
  uint8_t* x = static_cast<uint8_t*>(scratch(scratch_slot::activations, static_cast<size_t>(pairs * x_pair_bytes)));
  if (!x)
    return fail(LOWBIT_OUT_OF_MEMORY, "no memory for %lld activations in bf16",
                static_cast<long long>(2 * pairs * s.k_packed));
  parallel_for(p.m < 8 ? nullptr : p.parallel, pairs, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) bf16_pair(p, i, x + i * x_pair_bytes);
  });

  bool out_of_memory = false;
  parallel_for(p.parallel, s.panels, [&](int64_t begin, int64_t end) {
    constexpr int64_t pair_bytes = depth * 4;
    const size_t sums_bytes = static_cast<size_t>(2 * pairs * panel_rows) * sizeof(float);
    uint8_t* block = static_cast<uint8_t*>(scratch(scratch_slot::panel, panel_pairs * pair_bytes));
    float* sums = static_cast<float*>(scratch(scratch_slot::sums, sums_bytes));
    if (!block || !sums) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    bf16_decoder decoder(p.w);
    for (int64_t panel = begin; panel < end; ++panel) {
      std::memset(sums, 0, sums_bytes);
      for (int64_t column = 0; column < s.k_packed; column += depth) {
        const int64_t columns = s.k_packed - column < depth ? s.k_packed - column : depth;
        for (int64_t c = 0; c < columns; c += chunk)
          decoder.chunk_pairs(panel, (column + c) / chunk, block + c * 4, pair_bytes);
        multiply_panel<bfmmla>(pairs, x + column * 4, x_pair_bytes, block, pair_bytes, columns / 4, sums);
      }
      for (int64_t m = 0; m < p.m; ++m) store_row(p, sums + m * panel_rows, m, panel * panel_rows, p.w.global_scale);
    }
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a block of decoded weights");
  return LOWBIT_OK;
}

}  // namespace
}  // namespace lowbit::cpu
