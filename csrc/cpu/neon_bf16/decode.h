// Packed codes to bf16, 16 at a time: W[n][k] = bf16((value - zero_point) * scale), columns in order.
#pragma once

#include <arm_neon.h>

#include "cpu/neon/simd.h"
#include "cpu/neon_i8mm/pairs.h"

namespace lowbit::cpu {
namespace {

struct bf16x16 {
  uint8x16_t low, high;  // columns 0-7, 8-15
};

inline bf16x16 round_to_bf16(const float32x4x4_t& x) {
  return {vreinterpretq_u8_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(x.val[0]), x.val[1])),
          vreinterpretq_u8_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(x.val[2]), x.val[3]))};
}

// Decodes a panel's chunks of 64 columns to pairs of rows in units. 4-bit codes go through a table of the row's 16
// scaled values in bf16, made once for each group: two lookups and two zips for 16 weights. Narrow codes are joined to
// a line of bytes first.
class bf16_decoder {
 public:
  explicit bf16_decoder(const packed_view& weights)
      : w(weights),
        s(weights.shape),
        table_of_values(w.format->decode == recipe::lut16 || w.format->decode == recipe::lut4) {
    float sixteen[16];
    for (int i = 0; i < 16; ++i) sixteen[i] = w.format->values[i & ((1 << s.bits) - 1)];
    values = neon_lines::load(sixteen);
  }

  // out[pair * pair_bytes ...]: 256 bytes of each pair
  void chunk_pairs(int64_t panel, int64_t c, uint8_t* out, int64_t pair_bytes) {
    const int64_t column = c * chunk;
    prepare(panel, column);
    const auto high = [&](const uint8_t* p, int r, int g) { return look_up<true>(p, r, g); };
    const auto low = [&](const uint8_t* p, int r, int g) { return look_up<false>(p, r, g); };
    const auto integers = [&](const uint8_t* p, int r, int g) { return scaled(neon_lines::linear(vld1q_u8(p)), r, g); };
    const auto minifloats = [&](const uint8_t* p, int r, int g) {
      return scaled(neon_lines::minifloat(vld1q_u8(p), w.format->fp16_shift, w.format->fp16_scale), r, g);
    };
    const in_place lines{w.codes + s.code_offset(panel * panel_rows, column)};
    const int up = w.format->decode == recipe::narrow_minifloat ? 8 - s.bits : 0;
    joined_lines joined_ones{narrow_chunk(w, panel, column, up), {}};
    switch (w.format->decode) {
      case recipe::lut16:
        if (s.high_nibble(column)) return pairs(lines, out, pair_bytes, high);
        return pairs(lines, out, pair_bytes, low);
      case recipe::linear:
        return pairs(lines, out, pair_bytes, integers);
      case recipe::minifloat:
        return pairs(lines, out, pair_bytes, minifloats);
      case recipe::lut4:
        return pairs(joined_ones, out, pair_bytes, low);
      case recipe::narrow_linear: {
        const float32x4x4_t bias = neon_lines::set1(static_cast<float>(w.format->integer_offset - 128));
        return pairs(joined_ones, out, pair_bytes, [&](const uint8_t* p, int r, int g) {
          return scaled(neon_lines::sub(neon_lines::linear(vld1q_u8(p)), bias), r, g);
        });
      }
      case recipe::narrow_minifloat:
        return pairs(joined_ones, out, pair_bytes, minifloats);
    }
  }

 private:
  // Where two rows of bytes lie, row r and the next one line_bytes on.
  struct in_place {
    const uint8_t* lines;
    const uint8_t* two(int r) const {
      __builtin_prefetch(lines + r * line_bytes + prefetch_ahead);
      __builtin_prefetch(lines + (r + 1) * line_bytes + prefetch_ahead);
      return lines + r * line_bytes;
    }
  };
  struct joined_lines {
    narrow_chunk planes;
    uint8_t bytes[2 * line_bytes];
    const uint8_t* two(int r) {
      planes.row(r, bytes);
      planes.row(r + 1, bytes + line_bytes);
      return bytes;
    }
  };

  const packed_view& w;
  const packed_shape& s;
  const bool table_of_values;
  float32x4x4_t values;  // of 16 codes
  int64_t ready_panel = -1, ready_group = -1;
  float scale[4][panel_rows], zero[4][panel_rows], min[4][panel_rows];  // of the 1, 2 or 4 groups in a chunk
  uint8_t table[4][panel_rows][2][16];                                  // low bytes, high bytes

  void prepare(int64_t panel, int64_t column) {
    const int64_t group = s.group_of_column(column);
    if (s.unit == 64 && panel == ready_panel && group == ready_group) return;
    ready_panel = panel;
    ready_group = group;
    for (int i = 0; i < chunk / s.unit; ++i) {
      panel_scales(w, panel, group + i < s.groups ? group + i : s.groups - 1, scale[i], zero[i]);
      panel_mins(w, panel, group + i < s.groups ? group + i : s.groups - 1, min[i]);
      if (!table_of_values) continue;
      for (int r = 0; r < panel_rows; ++r) {
        const bf16x16 t = scaled(values, r, i);
        vst1q_u8(table[i][r][0], vuzp1q_u8(t.low, t.high));
        vst1q_u8(table[i][r][1], vuzp2q_u8(t.low, t.high));
      }
    }
  }

  bf16x16 scaled(const float32x4x4_t& v, int row, int group) const {
    return round_to_bf16(neon_lines::fma(neon_lines::sub(v, neon_lines::set1(zero[group][row])),
                                         neon_lines::set1(scale[group][row]), neon_lines::set1(min[group][row])));
  }

  template <bool High>
  bf16x16 look_up(const uint8_t* line, int row, int group) const {
    const uint8x16_t codes = vld1q_u8(line), index = High ? vshrq_n_u8(codes, 4) : vandq_u8(codes, vdupq_n_u8(15));
    const uint8x16_t low = vqtbl1q_u8(vld1q_u8(table[group][row][0]), index);
    const uint8x16_t high = vqtbl1q_u8(vld1q_u8(table[group][row][1]), index);
    return {vzip1q_u8(low, high), vzip2q_u8(low, high)};
  }

  // decode16(codes, row, group of the chunk) for all of a chunk.
  template <class Lines, class F>
  void pairs(Lines& lines, uint8_t* out, int64_t pair_bytes, const F& decode16) const {
    const int shift = s.unit == 64 ? 2 : s.unit == 32 ? 1 : 0;  // from sixteens to groups
    for (int r = 0; r < panel_rows; r += 2) {
      const uint8_t* line = lines.two(r);
      uint8_t* units = out + r / 2 * pair_bytes;
      for (int i = 0; i < 4; ++i) {
        const bf16x16 even = decode16(line + 16 * i, r, i >> shift);
        const bf16x16 odd = decode16(line + line_bytes + 16 * i, r + 1, i >> shift);
        store_units(units + 64 * i, even.low, odd.low);
        store_units(units + 64 * i + 32, even.high, odd.high);
      }
    }
  }
};

}  // namespace
}  // namespace lowbit::cpu
