// Packed codes to AMX A operands: 16 rows of 64 bytes of K.
#pragma once

#include "cpu/amx/tuning.h"
#include "cpu/avx512_vnni/simd.h"
#include "cpu/generic/chunks.h"

namespace lowbit::cpu {
namespace {

// ---- bf16: W[n][k] = bf16((value - zero_point) * scale), even columns of a chunk, then odd ones ----

// Decodes packed blocks of 1 KB, a tile at a time: other work fits between, and a tile's 16 stores are over long before
// the next ones reach its neighbours. 4-bit codes go through a table of the row's 16 scaled values in bf16, made once
// for each group: a permutation (and a shift) for 32 weights.
class bf16_decoder {
 public:
  static constexpr int64_t tile_bytes = 1024;

  struct block {
    const uint8_t* lines;
    int slot[2];  // where the groups of its chunks are; bytes have one chunk
  };

  // prefetch: bytes from a line to the one to ask for, in the order that blocks are decoded in. prepared: how many
  // blocks of this decoder are valid at a time, 1 or 2.
  void begin(const packed_view& weights, int64_t prefetch, int prepared) {
    w = weights;
    ahead = prefetch;
    turns = 2 * prepared;
    s = weights.shape;
    groups_at_once = chunk / s.unit;
    scale_bytes = dtype_bytes(w.scale_dtype);
    if (s.bits == 4) {
      values = _mm512_loadu_ps(w.format->values);
      // Bit 4 (and 5) of a table index tells which of the groups in 32 words a word belongs to.
      uint16_t which[32];
      for (int i = 0; i < 32; ++i) which[i] = static_cast<uint16_t>(s.unit == 64 ? 0 : i / (s.unit / 2) << 4);
      group_bits = _mm512_loadu_si512(which);
    }
  }

  // Finds or makes what a block needs of its groups. It takes some 70 cycles from the scales to the first lookup: to be
  // called while another block still has rows to decode.
  block prepare(int64_t panel, int64_t b) {
    const int64_t column = b * s.block_k;
    const int first = slot_of(panel, column);
    return {w.codes + s.block_offset(panel, b), {first, s.bits == 4 ? slot_of(panel, column + chunk) : first}};
  }
  int tiles() const { return s.bits == 4 ? 4 : 2; }  // of a block
  // Tile q of a block: even columns of the first chunk, odd ones, then those of the second.
  void tile(const block& from, int q, uint8_t* out) const {
    with_unit([&](auto unit) {
      if (s.bits == 8) return q == 0 ? byte_tile<unit.value, false>(from, out) : byte_tile<unit.value, true>(from, out);
      if (q < 2) return q == 0 ? lut16_tile<unit.value, 0>(from, out) : lut16_tile<unit.value, 1>(from, out);
      return q == 2 ? lut16_tile<unit.value, 2>(from, out) : lut16_tile<unit.value, 3>(from, out);
    });
  }

  void decode(int64_t panel, int64_t b, uint8_t* out) {
    const block from = prepare(panel, b);
    for (int q = 0; q < tiles(); ++q) tile(from, q, out + q * tile_bytes);
  }

 private:
  // What a chunk needs: the scales of its 1, 2 or 4 groups, and the tables made of them.
  struct alignas(64) chunk_groups {
    uint16_t table[panel_rows * 4 * 16];  // [row][group][code]
    float scale[4][panel_rows], zero[4][panel_rows], min[4][panel_rows];
  };

  packed_view w;
  packed_shape s;
  __m512 values = {};  // of the 16 codes
  __m512i group_bits = {};
  int64_t ahead;           // bytes from a line to the one to ask for
  int64_t groups_at_once;  // in a chunk
  int64_t scale_bytes;
  int64_t newest_panel = -1, newest_group = -1, newest_begin = 0, newest_end = 0;
  int newest = 0, turns;
  chunk_groups slots[4];  // in turns, two of a block; as few as will do: four decoders' would fill L1

  template <class F>
  void with_unit(const F& f) const {
    if (s.unit == 64)
      f(constant<64>{});
    else if (s.unit == 32)
      f(constant<32>{});
    else
      f(constant<16>{});
  }

  int slot_of(int64_t panel, int64_t column) {
    if (panel == newest_panel && column >= newest_begin && column < newest_end) return newest;
    const bool follows = panel == newest_panel && column == newest_end;  // spares a division
    newest_begin = follows ? column : column / s.span * s.span;
    newest_end = newest_begin + (s.span > chunk ? s.span : chunk);
    newest_group = follows ? newest_group + groups_at_once : column / s.span;
    newest_panel = panel;
    newest = (newest + 1) & (turns - 1);
    with_unit([&](auto unit) { make_groups<unit.value>(panel, newest_group, slots[newest]); });
    return newest;
  }

  // Scales are a second stream, of one line for several blocks.
  void prefetch_scales(int64_t panel, int64_t group) const {
    const int64_t i = s.scale_index(panel * panel_rows, group);
    _mm_prefetch(static_cast<const uint8_t*>(w.scales) + i * scale_bytes + scale_prefetch_bytes, _MM_HINT_T0);
    if (w.zero_points) _mm_prefetch(w.zero_points + i + scale_prefetch_bytes, _MM_HINT_T0);
  }

  template <int Unit>
  void make_groups(int64_t panel, int64_t first, chunk_groups& out) const {
    prefetch_scales(panel, first);
    for (int i = 0; i < chunk / Unit; ++i) {
      const int64_t group = first + i < s.groups ? first + i : s.groups - 1;  // padding: any finite scale does
      _mm512_store_ps(out.scale[i], load_scales(w, panel, group));
      if (w.zero_points) _mm512_store_ps(out.zero[i], _mm512_cvtepi32_ps(load_zero_points(w, panel, group)));
      if (w.mins) _mm512_store_ps(out.min[i], load_numbers(w, w.mins, w.super_mins, panel, group));
    }
    if (s.bits == 8) return;
    if (w.mins)
      make_tables<Unit, offset::min>(out);
    else if (w.zero_points)
      make_tables<Unit, offset::zero_point>(out);
    else
      make_tables<Unit, offset::none>(out);
  }

  template <offset Offset>
  static __m512 scaled_values(__m512 v, const chunk_groups& of, int row, int group) {
    const __m512 scale = _mm512_set1_ps(of.scale[group][row]);
    if (Offset == offset::min) return _mm512_fmadd_ps(v, scale, _mm512_set1_ps(of.min[group][row]));
    if (Offset == offset::zero_point) v = _mm512_sub_ps(v, _mm512_set1_ps(of.zero[group][row]));
    return _mm512_mul_ps(v, scale);
  }

  template <int Unit, offset Offset>
  void make_tables(chunk_groups& out) const {
    constexpr int groups = chunk / Unit;
    const __m512 v = values;
    for (int i = 0; i < panel_rows * groups; i += 2) {  // two tables of 16 at a time
      const __m512 low = scaled_values<Offset>(v, out, i / groups, i % groups);
      const __m512 high = scaled_values<Offset>(v, out, (i + 1) / groups, (i + 1) % groups);
      _mm512_store_si512(out.table + 16 * i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    }
  }

  // One row's tables: the only one twice, so that a lookup need not clear bit 4 of its index; two; or two and two.
  struct row_table {
    __m512i low, high;
  };
  template <int Unit>
  static row_table load_table(const uint16_t* entries) {
    if constexpr (Unit == 64) {
      const __m512i t = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(entries)));
      return {t, t};
    }
    const __m512i* t = reinterpret_cast<const __m512i*>(entries);
    return {t[0], Unit == 16 ? t[1] : t[0]};
  }

  template <int Unit>
  static __m512i lookup(__m512i index, const row_table& t, __m512i group_bits) {
    if constexpr (Unit == 64) return _mm512_permutexvar_epi16(index, t.low);
    index = _mm512_ternarylogic_epi32(index, _mm512_set1_epi16(15), group_bits, 0xea);  // (index & 15) | group
    if constexpr (Unit == 32) return _mm512_permutexvar_epi16(index, t.low);
    return _mm512_permutex2var_epi16(t.low, index, t.high);
  }

  // A tile's share of the lines to come, into L2 (cpu/generic/chunks.h has the reason).
  template <int Q, int Tiles>
  void prefetch_share(const uint8_t* lines) const {
    constexpr int rows = static_cast<int>(panel_rows) / Tiles;
    for (int r = Q * rows; r < (Q + 1) * rows; ++r) __builtin_prefetch(lines + r * line_bytes + ahead, 0, 2);
  }

  template <int Unit, int Q>
  void lut16_tile(const block& from, uint8_t* out) const {
    constexpr int shift = Q / 2 * 4 + Q % 2 * 8, row_entries = chunk / Unit * 16;
    // Copies: the stores below are of bytes, which may be anything's as the compiler sees it.
    const uint8_t* lines = from.lines;
    const uint16_t* table = slots[from.slot[Q / 2]].table;
    const __m512i bits = group_bits;
    prefetch_share<Q, 4>(lines);
#pragma GCC unroll 4
    for (int r = 0; r < panel_rows; ++r) {
      const __m512i codes = _mm512_srli_epi16(_mm512_loadu_si512(lines + r * line_bytes), shift);
      _mm512_store_si512(out + r * 64, lookup<Unit>(codes, load_table<Unit>(table + r * row_entries), bits));
    }
  }

  // Bytes to words, of every second column: integers, or what an fp16 has in place of sign, exponent and mantissa.
  struct byte_words {
    __m512i shift, mask;  // of minifloats: to the sign's bit and below; what is theirs

    explicit byte_words(int fp16_shift)
        : shift(_mm512_set1_epi16(static_cast<int16_t>(8 - fp16_shift))),
          mask(_mm512_set1_epi16(static_cast<int16_t>(0x8000 | 0x7f << fp16_shift))) {}
    template <bool Odd, bool Linear>
    __m512i of(__m512i codes) const {
      if (Linear)
        return _mm512_sub_epi16(Odd ? _mm512_srli_epi16(codes, 8) : _mm512_and_si512(codes, _mm512_set1_epi16(0xff)),
                                _mm512_set1_epi16(128));
      return _mm512_and_si512(_mm512_srav_epi16(Odd ? codes : _mm512_slli_epi16(codes, 8), shift), mask);
    }
  };

  template <int Unit, bool Odd, bool Linear, bool Zeros>
  void byte_rows(const block& from, uint8_t* out) const {
    // Copies: the stores below may be of anything as the compiler sees it.
    const uint8_t* lines = from.lines;
    const chunk_groups& g = slots[from.slot[0]];
    const byte_words words(w.format->fp16_shift);
    const __m512 factor = _mm512_set1_ps(w.format->fp16_scale);
    prefetch_share<Odd, 2>(lines);
#pragma GCC unroll 4
    for (int r = 0; r < panel_rows; ++r) {
      const __m512i row = words.of<Odd, Linear>(_mm512_loadu_si512(lines + r * line_bytes));
      const __m256i half[2] = {_mm512_castsi512_si256(row), _mm512_extracti64x4_epi64(row, 1)};
      __m512 value[2];
      for (int i = 0; i < 2; ++i) {
        value[i] = Linear ? _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(half[i]))
                          : _mm512_mul_ps(_mm512_cvtph_ps(half[i]), factor);
        if (Zeros) value[i] = _mm512_sub_ps(value[i], spread<Unit>(g.zero, r, i));
        value[i] = _mm512_mul_ps(value[i], spread<Unit>(g.scale, r, i));
      }
      _mm512_store_si512(out + r * 64, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(value[1], value[0])));
    }
  }

  template <int Unit, bool Odd>
  void byte_tile(const block& from, uint8_t* out) const {
    if (w.format->decode == recipe::minifloat)  // has no zero points
      byte_rows<Unit, Odd, false, false>(from, out);
    else if (w.zero_points)
      byte_rows<Unit, Odd, true, true>(from, out);
    else
      byte_rows<Unit, Odd, true, false>(from, out);
  }

  // For 16 words, the lower (0) or upper (1) half of a chunk's 32: they belong to one group, or to two, 8 words each.
  template <int Unit>
  static __m512 spread(const float (*of)[panel_rows], int row, int upper) {
    if (Unit == 64) return _mm512_set1_ps(of[0][row]);
    if (Unit == 32) return _mm512_set1_ps(of[upper][row]);
    return _mm512_mask_mov_ps(_mm512_set1_ps(of[2 * upper][row]), 0xff00, _mm512_set1_ps(of[2 * upper + 1][row]));
  }
};

// ---- int8: W[n][k] = code - zero_point as signed bytes (4-bit), or the stored bytes where a step is a block ----

// One step of a panel as an A tile of signed bytes: 4-bit codes less their zero point, zero past the group's columns.
// offsets: four bytes a row, so that one load fills a register.
inline void decode_int4_step(const packed_view& w, const integer_axis& axis, int64_t panel, int64_t step,
                             const uint32_t offsets[panel_rows], uint8_t* tile) {
  const packed_shape& s = w.shape;
  const int64_t column = axis.packed_column(step, s), count = axis.packed_columns(step, s);
  const uint64_t keep = count >= 64 ? ~0ull : (1ull << count) - 1;
  const bool high = s.high_nibble(column);
  const uint8_t* lines = w.codes + s.code_offset(panel * panel_rows, column);
  for (int r = 0; r < panel_rows; ++r) {
    __m512i codes = _mm512_maskz_loadu_epi8(keep, lines + r * line_bytes);
    if (high)
      codes = _mm512_srli_epi16(codes, 4);
    else
      prefetch_codes(lines + r * line_bytes);
    codes = _mm512_and_si512(codes, _mm512_set1_epi8(15));
    codes = _mm512_maskz_sub_epi8(keep, codes, _mm512_set1_epi32(static_cast<int32_t>(offsets[r])));
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
