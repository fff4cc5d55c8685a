// What a weight_only CTA keeps in shared memory for 128 columns of K, and how it gets there.
//
//   x        columns (of x^T) x 256 bytes; its 16-byte pieces permuted so that eight rows meet in no bank
//   codes    strips of 64 rows, as they lie in global memory
//   scales   strips x slots x 64, the groups that the step touches; zero points likewise
#pragma once

#include "cuda/contract.h"
#include "cuda/generic/decode.h"

namespace lowbit::cuda::sm80 {

inline constexpr int step_columns = fragment_step;
inline constexpr int x_pitch = step_columns * 2;

template <class C>
using T_of = typename C::T;

// Piece `piece` of a row of x. Eight rows of one piece, as ldmatrix reads them, and four rows of two pieces, as bytes'
// columns are read, lie in different banks.
LOWBIT_DEVICE uint32_t swizzled(int piece, int row) {
  return static_cast<uint32_t>(piece ^ ((row & 3) * 2 | (row >> 2 & 1)));
}

// Bytes from a group's 64 numbers to the next group's: four groups by eight rows lie in different banks.
constexpr int slot_pitch(int number_bytes) { return 64 * number_bytes + (number_bytes == 4 ? 32 : 16); }

// A stage, and what decoding one needs: the same for every CTA.
struct stage_plan {
  int codes_at, scales_at, zeros_at, bytes;  // in the stage; x comes first
  int strip_step;                            // bytes of a strip's codes
  int slots;                                 // groups that a step may touch, at most
  int span, groups;
  int step_groups, step_rest;  // 128 columns are so many spans and columns
  uint32_t begins;             // where groups begin in every step, if that is in the same places; else 0
  bool grouped;                // more than one group along K: scales belong to steps
  bool zero_points;
  int scale_dtype, scale_shift, scale_pitch;  // a scale has 1 << scale_shift bytes
  float bias;                                 // of raw values, and the format's offset
};

// The tiles in an order in which neighbours in time share x and W in the L2: bands of `band` blocks of W.
struct tile_order {
  int w_blocks, x_blocks;
  static constexpr int band = 8;

  LOWBIT_DEVICE void place(int index, int& w_block, int& x_block) const {
    const int per_band = band * x_blocks, first = index / per_band * band;
    const int height = w_blocks - first < band ? w_blocks - first : band;
    const int inside = index % per_band;
    w_block = first + inside % height;
    x_block = inside / height;
  }
};

struct tile_place {
  int w_block, x_block;
};

struct arguments {
  // W
  const uint8_t* codes;
  uint32_t strip_bytes;
  const uint8_t* scales;
  const int8_t* zero_points;
  int strips, rows_packed;
  stage_plan plan;
  decode_constants decode;
  // x
  const uint16_t* x;
  int64_t x_stride;
  int m, k;
  bool gather;  // x's columns are not where W's packed ones are, or not aligned: element by element
  int group_k;
  // the schedule
  tile_order order;
  int steps, slices, stages;
  bool split;        // a CTA does one slice and stores partial sums
  int waiting_sums;  // where in shared memory slices' sums wait for the next slice's; 0: they do not
  // y
  int n;
  float* partials;  // [slices][m][rows_packed]
  void* y;
  int y_dtype;
  int64_t y_stride;
  bool whole_stores;  // four outputs at a time fit y's address and stride
  const void* bias;   // or null
  int bias_dtype;
  bool whole_bias;            // likewise
  float unscale;              // a power of two that decoded weights are too small by
  const float* global_scale;  // or null
};

LOWBIT_DEVICE int slice_begin(const arguments& a, int slice) {
  return static_cast<int>(static_cast<int64_t>(slice) * a.steps / a.slices);
}

struct step_groups {
  int first, count;
  uint32_t begins;  // bit i: a group of the step begins, or goes on, at its i-th 16 columns
};

// Where a step's first column is: no division from step to step.
struct group_cursor {
  int group, inside;

  LOWBIT_DEVICE group_cursor(const stage_plan& p, int step) : group(0), inside(0) {
    if (!p.grouped) return;
    const int column = step * step_columns;
    group = column / p.span;
    inside = column - group * p.span;
  }
  LOWBIT_DEVICE void advance(const stage_plan& p) {
    group += p.step_groups;
    inside += p.step_rest;
    if (inside < p.span) return;
    inside -= p.span;
    ++group;
  }
  LOWBIT_DEVICE step_groups step(const stage_plan& p) const {
    const int left = p.groups - group;
    step_groups s{group, p.slots, p.begins};
    if (s.begins && p.slots <= left) return s;
    s.begins = 1;
    s.count = 1;
    LOWBIT_UNROLL_N(1)
    for (int next = p.span - inside; next < step_columns && s.count < left; next += p.span) {
      ++s.count;
      s.begins |= 1u << next / 16;
    }
    return s;
  }
};

// ---- global to shared ----------------------------------------------------------------------------------------

// Until the oldest of the `stages` - 1 groups in flight has landed.
LOWBIT_DEVICE void wait_for_stage(int stages) {
  if (stages == 2)
    async_wait<0>();
  else if (stages == 3)
    async_wait<1>();
  else if (stages == 4)
    async_wait<2>();
  else
    async_wait<3>();
}
inline constexpr int max_stages = 5;

// A thread's share of every stage, step after step: what does not change is computed once.
template <class C>
class stage_loader {
 public:
  LOWBIT_DEVICE stage_loader(const arguments& given, const tile_place& at, int step)
      : a(given), first_strip(at.w_block * strips), cursor(given.plan, step) {
    const int row = thread() / x_pieces, piece = thread() % x_pieces;
    first_row = at.x_block * C::columns;
    column = step * step_columns + piece * 8;
    rows_left = a.m - first_row - row;
    x = a.x + (first_row + row) * a.x_stride + column;
    x_at = static_cast<uint32_t>(row) * x_pitch + swizzled(piece, row) * 16;
    codes = a.codes + thread() % strip_pieces * 16 + static_cast<int64_t>(step) * (strip_pieces * 16);
    if (a.plan.grouped) {
      const int own = thread() / strip_threads, piece_of_strip = thread() % strip_threads;
      const int64_t numbers = static_cast<int64_t>(strip(own)) * a.plan.groups * 64;
      scales = a.scales + (numbers << a.plan.scale_shift) + piece_of_strip * 16;
      if (C::codes::offset && a.plan.zero_points)
        zeros = reinterpret_cast<const uint8_t*>(a.zero_points) + numbers + piece_of_strip * 16;
    }
  }

  // Starts the copies of the next step and goes on to the one after it.
  LOWBIT_DEVICE void load(uint32_t stage) {
    if (a.gather)
      gather_x(stage);
    else
      load_x(stage);
    load_codes(stage + a.plan.codes_at);
    if (a.plan.grouped) {
      const step_groups groups = cursor.step(a.plan);
      load_numbers(stage + a.plan.scales_at, scales, a.plan.scale_shift, groups);
      if (C::codes::offset && a.plan.zero_points) load_numbers(stage + a.plan.zeros_at, zeros, 0, groups);
      cursor.advance(a.plan);
    }
    x += step_columns;
    column += step_columns;
    codes += strip_pieces * 16;
  }

 private:
  static constexpr int strips = C::rows / 64, strip_threads = C::loaders / strips;
  static constexpr int x_pieces = x_pitch / 16, strip_pieces = 64 * C::codes::bits;
  static constexpr cache hint = C::columns <= 64 ? cache::streaming : cache::normal;

  const arguments& a;
  int first_strip, first_row, column, rows_left;
  const uint16_t* x;
  uint32_t x_at;
  const uint8_t *codes, *scales = nullptr, *zeros = nullptr;
  group_cursor cursor;

  static LOWBIT_DEVICE int thread() { return C::producer ? lane_index() : thread_index(); }

  // Strips past the last one repeat it: their sums are not stored.
  LOWBIT_DEVICE uint32_t strip(int i) const {
    return static_cast<uint32_t>(first_strip + i < a.strips ? first_strip + i : a.strips - 1);
  }

  LOWBIT_DEVICE void load_x(uint32_t stage) const {
    constexpr int rows = C::loaders / x_pieces;  // at a time
    static_assert(C::columns % rows == 0);
    const int left = a.k - column, inside = left < 0 ? 0 : left < 8 ? left * 2 : 16;
    LOWBIT_UNROLL
    for (int i = 0; i < C::columns / rows; ++i) {
      const uint32_t to = x_at ^ swizzled(0, i * rows) * 16;  // bits of its row that this thread's first one has not
      async_copy<16>(stage + to + i * rows * x_pitch, x + i * rows * a.x_stride, i * rows < rows_left ? inside : 0);
    }
  }

  // The same, element by element: packed column to column of x.
  LOWBIT_DEVICE void gather_x(uint32_t stage) const {
    const int group = column / a.plan.span, first = column - group * a.plan.span;
    const int64_t from_column = static_cast<int64_t>(group) * a.group_k + first;  // spans are whole 16s: one group
    for (int row = thread() / x_pieces; row < C::columns; row += C::loaders / x_pieces) {
      uint32_t pair[4] = {0, 0, 0, 0};
      if (first_row + row < a.m && group < a.plan.groups) {
        const uint16_t* from = a.x + (first_row + row) * a.x_stride + from_column;
        LOWBIT_UNROLL
        for (int e = 0; e < 8; ++e)
          if (first + e < a.group_k && from_column + e < a.k)
            pair[e / 2] |= static_cast<uint32_t>(global_load<uint16_t>(from + e)) << e % 2 * 16;
      }
      shared_store<u32x4>(stage + row * x_pitch + swizzled(thread() % x_pieces, row) * 16,
                          {pair[0], pair[1], pair[2], pair[3]});
    }
  }

  LOWBIT_DEVICE void load_codes(uint32_t to) const {
    LOWBIT_UNROLL
    for (int i = 0; i < strips * strip_pieces / C::loaders; ++i) {
      const int item = i * C::loaders + thread();
      constexpr int per_strip = strip_pieces / C::loaders;  // 0: a thread's copies skip strips
      const int own = per_strip ? i / (per_strip ? per_strip : 1) : item / strip_pieces;
      const int inside = per_strip ? i % (per_strip ? per_strip : 1) * C::loaders * 16 : 0;
      async_copy<16, hint>(to + item * 16, codes + static_cast<uint64_t>(strip(own)) * a.strip_bytes + inside);
    }
  }

  // A step's scales or zero points, 1 << shift bytes each.
  LOWBIT_DEVICE void load_numbers(uint32_t to, const uint8_t* from, int shift, const step_groups& groups) const {
    const int pieces = groups.count << (2 + shift);
    int piece = thread() % strip_threads;
    if (piece >= pieces) return;
    const int pitch = slot_pitch(1 << shift);
    to += thread() / strip_threads * a.plan.slots * pitch;
    from += static_cast<int64_t>(groups.first) << (6 + shift);
    LOWBIT_UNROLL_N(1)
    for (; piece < pieces; piece += strip_threads, from += strip_threads * 16) {
      const int slot = piece >> (2 + shift);
      async_copy<16>(to + slot * pitch + (piece - (slot << (2 + shift))) * 16, from);
    }
  }
};

}  // namespace lowbit::cuda::sm80
