// Packed codes to AMX A operands: 16 rows of 64 bytes of K.
#pragma once

#include "cpu/amx/tuning.h"
#include "cpu/avx512_vnni/simd.h"
#include "cpu/generic/chunks.h"

namespace lowbit::cpu {
namespace {

// ---- bf16: W[n][k] = bf16((value - zero_point) * scale), even columns of a chunk, then odd ones ----

// Decodes panels block by block. 4-bit codes go through a table of the row's 16 scaled values in bf16, made once for
// each group: two instructions for 32 weights.
class bf16_decoder {
 public:
  static constexpr int64_t tile_bytes = 1024;

  void begin(const packed_view& weights) {
    w = weights;
    s = weights.shape;
    if (s.bits == 4) {
      values = _mm512_loadu_ps(w.format->values);
      // Bit 4 (and 5) of a table index tells which of the groups in 32 words a word belongs to.
      uint16_t which[32];
      for (int i = 0; i < 32; ++i) which[i] = static_cast<uint16_t>(s.unit == 64 ? 0 : i / (s.unit / 2) << 4);
      group_bits = _mm512_loadu_si512(which);
    }
  }

  // One 1 KB packed block of a panel to its tiles: 4 of 4-bit codes, 2 of bytes.
  void block(int64_t panel, int64_t b, uint8_t* tiles) {
    const uint8_t* lines = w.codes + s.block_offset(panel, b);
    if (s.bits == 4)
      lut16_block(panel, b, lines, tiles);
    else
      byte_block(panel, b, lines, tiles);
  }

 private:
  packed_view w;
  packed_shape s;
  __m512 values = {};  // of the 16 codes
  __m512i group_bits = {};
  int64_t table_panel = -1, table_group = -1;
  alignas(64) uint16_t table[panel_rows][64];  // of one chunk: 32 entries, 64 when groups are 16 wide
  alignas(64) float scale[4][panel_rows], zero[4][panel_rows] = {};

  void load_group(int64_t panel, int64_t group, int slot) {
    if (group >= s.groups) group = s.groups - 1;  // padding: any finite scale does
    _mm512_store_ps(scale[slot], load_scales(w, panel, group));
    if (w.zero_points) _mm512_store_ps(zero[slot], _mm512_cvtepi32_ps(load_zero_points(w, panel, group)));
  }

  template <bool Zero>
  __m512 scaled_values(int row, int slot) const {
    const __m512 v = Zero ? _mm512_sub_ps(values, _mm512_set1_ps(zero[slot][row])) : values;
    return _mm512_mul_ps(v, _mm512_set1_ps(scale[slot][row]));
  }

  template <bool Zero>
  void make_tables() {
    if (s.unit == 64) {
      for (int r = 0; r < panel_rows; ++r) {
        const __m256i entries = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(scaled_values<Zero>(r, 0)));
        _mm256_store_si256(reinterpret_cast<__m256i*>(table[r]), entries);
        _mm256_store_si256(reinterpret_cast<__m256i*>(table[r] + 16), entries);
      }
      return;
    }
    for (int r = 0; r < panel_rows; ++r)
      for (int i = 0; i < 64 / s.unit; i += 2)
        _mm512_store_si512(table[r] + 16 * i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(
                                                  scaled_values<Zero>(r, i + 1), scaled_values<Zero>(r, i))));
  }

  // Tables for the chunk that begins at a packed column.
  void prepare_tables(int64_t panel, int64_t column) {
    const int64_t group = s.groups == 1 ? 0 : column / s.span;
    if (s.unit == 64) {
      if (panel == table_panel && group == table_group) return;
      table_panel = panel;
      table_group = group;
    }
    for (int i = 0; i < 64 / s.unit; ++i) load_group(panel, group + i, i);
    if (w.zero_points)
      make_tables<true>();
    else
      make_tables<false>();
  }

  template <int Unit, int Shift>
  __m512i lookup(__m512i line, int row) const {
    const __m512i* t = reinterpret_cast<const __m512i*>(table[row]);
    __m512i index = Shift ? _mm512_srli_epi16(line, Shift) : line;
    if constexpr (Unit == 64) return _mm512_permutexvar_epi16(index, t[0]);  // the table stands twice: bit 4 is free
    index = _mm512_ternarylogic_epi32(index, _mm512_set1_epi16(15), group_bits, 0xea);  // (index & 15) | group
    if constexpr (Unit == 32) return _mm512_permutexvar_epi16(index, t[0]);
    return _mm512_permutex2var_epi16(t[0], index, t[1]);
  }

  template <int Unit>
  void lut16_lines(int64_t panel, int64_t column, const uint8_t* lines, uint8_t* tiles) {
    prepare_tables(panel, column);
    for (int r = 0; r < panel_rows; ++r) {
      const __m512i line = _mm512_loadu_si512(lines + r * line_bytes);
      _mm_prefetch(lines + r * line_bytes + prefetch_bytes, _MM_HINT_T0);
      _mm512_store_si512(tiles + r * 64, lookup<Unit, 0>(line, r));
      _mm512_store_si512(tiles + tile_bytes + r * 64, lookup<Unit, 8>(line, r));
    }
    prepare_tables(panel, column + chunk);
    for (int r = 0; r < panel_rows; ++r) {
      const __m512i line = _mm512_loadu_si512(lines + r * line_bytes);
      _mm512_store_si512(tiles + 2 * tile_bytes + r * 64, lookup<Unit, 4>(line, r));
      _mm512_store_si512(tiles + 3 * tile_bytes + r * 64, lookup<Unit, 12>(line, r));
    }
  }

  void lut16_block(int64_t panel, int64_t b, const uint8_t* lines, uint8_t* tiles) {
    const int64_t column = b * 128;
    if (s.unit == 64)
      lut16_lines<64>(panel, column, lines, tiles);
    else if (s.unit == 32)
      lut16_lines<32>(panel, column, lines, tiles);
    else
      lut16_lines<16>(panel, column, lines, tiles);
  }

  // 32 bytes, zero-extended to words: every second column of 64.
  __m512i scaled_bytes(__m512i words, int row) const {
    __m512 low, high;
    if (w.format->decode == recipe::linear) {
      const __m512i offset = _mm512_sub_epi16(words, _mm512_set1_epi16(128));
      low = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(offset)));
      high = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(offset, 1)));
    } else {
      const __m512i magnitude =
          _mm512_sll_epi16(_mm512_and_si512(words, _mm512_set1_epi16(0x7f)), _mm_cvtsi32_si128(w.format->fp16_shift));
      const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(words, _mm512_set1_epi16(0x80)), 8);
      const __m512i halves = _mm512_or_si512(magnitude, sign);
      const __m512 factor = _mm512_set1_ps(w.format->fp16_scale);
      low = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)), factor);
      high = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)), factor);
    }
    low = _mm512_mul_ps(_mm512_sub_ps(low, spread(zero, row, 0)), spread(scale, row, 0));
    high = _mm512_mul_ps(_mm512_sub_ps(high, spread(zero, row, 1)), spread(scale, row, 1));
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  }

  // For 16 words, the lower (0) or upper (1) half of a chunk's 32: they belong to one group, or to two, 8 words each.
  __m512 spread(const float (*of)[panel_rows], int row, int upper) const {
    if (s.unit == 64) return _mm512_set1_ps(of[0][row]);
    if (s.unit == 32) return _mm512_set1_ps(of[upper][row]);
    return _mm512_mask_mov_ps(_mm512_set1_ps(of[2 * upper][row]), 0xff00, _mm512_set1_ps(of[2 * upper + 1][row]));
  }

  void byte_block(int64_t panel, int64_t b, const uint8_t* lines, uint8_t* tiles) {
    const int64_t group = s.groups == 1 ? 0 : b * chunk / s.span;
    for (int i = 0; i < 64 / s.unit; ++i) load_group(panel, group + i, i);
    for (int r = 0; r < panel_rows; ++r) {
      const __m512i line = _mm512_loadu_si512(lines + r * line_bytes);
      _mm_prefetch(lines + r * line_bytes + prefetch_bytes, _MM_HINT_T0);
      _mm512_store_si512(tiles + r * 64, scaled_bytes(_mm512_and_si512(line, _mm512_set1_epi16(0xff)), r));
      _mm512_store_si512(tiles + tile_bytes + r * 64, scaled_bytes(_mm512_srli_epi16(line, 8), r));
    }
  }
};

// ---- int8: W[n][k] = code - zero_point as signed bytes (4-bit), or the stored bytes where a step is a block ----

// One step of a panel as an A tile of signed bytes: 4-bit codes less their zero point, zero past the group's columns.
inline void decode_int4_step(const packed_view& w, const integer_axis& axis, int64_t panel, int64_t step,
                             const int32_t offset[panel_rows], uint8_t* tile) {
  const packed_shape& s = w.shape;
  const int64_t column = axis.packed_column(step, s), count = axis.packed_columns(step, s);
  const uint64_t keep = count >= 64 ? ~0ull : (1ull << count) - 1;
  const bool high = s.high_nibble(column);
  const uint8_t* lines = w.codes + s.code_offset(panel * panel_rows, column);
  for (int r = 0; r < panel_rows; ++r) {
    __m512i codes = _mm512_maskz_loadu_epi8(keep, lines + r * line_bytes);
    _mm_prefetch(lines + r * line_bytes + prefetch_bytes, _MM_HINT_T0);
    if (high) codes = _mm512_srli_epi16(codes, 4);
    codes = _mm512_and_si512(codes, _mm512_set1_epi8(15));
    codes = _mm512_maskz_sub_epi8(keep, codes, _mm512_set1_epi8(static_cast<int8_t>(offset[r])));
    _mm512_store_si512(tile + r * 64, codes);
  }
}

// The same of stored bytes (value + 128), for groups narrower than a step: zeros past the group meet activations of
// zero.
inline void decode_int8_step(const packed_view& w, const integer_axis& axis, int64_t panel, int64_t step,
                             uint8_t* tile) {
  const packed_shape& s = w.shape;
  const int64_t column = axis.packed_column(step, s), count = axis.packed_columns(step, s);
  const uint64_t keep = count >= 64 ? ~0ull : (1ull << count) - 1;
  const uint8_t* lines = w.codes + s.code_offset(panel * panel_rows, column);
  for (int r = 0; r < panel_rows; ++r)
    _mm512_store_si512(tile + r * 64, _mm512_maskz_loadu_epi8(keep, lines + r * line_bytes));
}

}  // namespace
}  // namespace lowbit::cpu
