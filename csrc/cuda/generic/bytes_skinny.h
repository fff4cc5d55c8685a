// 8-bit x W for few rows of x: a CTA makes 32 rows of W x 8 NT of x from all of K; its 8 warps take units of K in turn.
//
//   global --16 bytes a lane, a step ahead--> registers --MMA--> shared: sums of each warp's segments --chain--> y
//
// A round is 8 units, one for each warp. Where a segment ends in a round, or the next, the warps leave their sums in
// shared memory and 256 threads, each with its own NT outputs, join them in the order of K. Else they keep them.
// The bytes of x that a CTA reads are NT / 4 of those of 8-bit W; they come from L2.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/generic/bytes.h"

namespace lowbit::cuda {

template <class F, int NT>
struct bytes_skinny {
  static constexpr int warps = 8, threads = 256, ctas = NT == 1 ? 2 : 1;
  static constexpr int w_rows = 32, x_rows = 8 * NT;
  static constexpr int row_tiles = 2;
  static constexpr int slot_bytes = NT * 32 * 8 * 4;                      // [NT][32 rows of W][8 of x]
  static constexpr int ones_bytes = F::zeros ? NT * 8 * 4 : 0;            // sums of q
  static constexpr int piece_bytes = slot_bytes + ones_bytes;
  static constexpr int staging = staging_bytes(32, x_rows);
  static int shared_bytes(int pieces) { return staging + warps * pieces * piece_bytes; }
};

template <class F, int NT>
LOWBIT_KERNEL((bytes_skinny<F, NT>::threads), (bytes_skinny<F, NT>::ctas))
void bytes_skinny_kernel(const byte_arguments a) {
  using T = bytes_skinny<F, NT>;
  using sum = typename F::sum;
  constexpr int MT = T::row_tiles, loads = step_loads<F::bits>;
  const int lane = lane_index(), warp = warp_index();
  const uint32_t staging = shared_base(), slots = staging + T::staging;
  const int strip = cta_index() / 2, strip_half = cta_index() % 2, first_tile = cta_index_y() * NT;
  const uint8_t* const w_from = a.w + strip * a.w_strip_bytes + strip_half * MT * 512 + lane * 16;

  struct operands {
    weight_words<F::bits> w[MT];
    u32x4 x[NT][2];
  };
  const auto load = [&](int step, operands& to) {
    LOWBIT_UNROLL
    for (int i = 0; i < MT; ++i)
      LOWBIT_UNROLL
    for (int j = 0; j < loads; ++j)
      to.w[i].set(j, global_load<u32x4, cache::streaming>(
                         w_from + ((static_cast<int64_t>(step) * loads + j) * 4 + i) * 512));
    LOWBIT_UNROLL
    for (int j = 0; j < NT; ++j)
      LOWBIT_UNROLL
    for (int k64 = 0; k64 < 2; ++k64)
      to.x[j][k64] = first_tile + j < a.x_tiles
                         ? global_load<u32x4>(a.x + (static_cast<int64_t>(first_tile + j) * a.steps + step) * 1024 +
                                              k64 * 512 + lane * 16)
                         : u32x4{0, 0, 0, 0};
  };

  sum sums[MT][NT][4] = {};
  int32_t q_sums[NT][4] = {};
  const uint32_t ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
  const auto multiply = [&](const uint32_t (&w)[MT][4], const uint32_t (&x)[NT][2]) {
    LOWBIT_UNROLL
    for (int i = 0; i < MT; ++i)
      LOWBIT_UNROLL
    for (int j = 0; j < NT; ++j) F::multiply(sums[i][j], w[i], x[j]);
    if constexpr (F::zeros)
      if (a.w_zero)
        LOWBIT_UNROLL
    for (int j = 0; j < NT; ++j) mma_m16n8k32_s8(q_sums[j], ones, x[j]);
  };
  // The sums so far to the warp's slot `piece`; they begin anew.
  const auto leave = [&](int piece) {
    const uint32_t slot = slots + (warp * a.pieces + piece) * T::piece_bytes;
    LOWBIT_UNROLL
    for (int i = 0; i < MT * NT * 2; ++i) {
      sum(&c)[4] = sums[i / (NT * 2)][i / 2 % NT];
      const int h = i % 2 * 2, row = i / (NT * 2) * 16 + i % 2 * 8 + lane / 4;
      shared_store(slot + ((i / 2 % NT * 32 + row) * 8 + lane % 4 * 2) * 4,
                   u32x2{std::bit_cast<uint32_t>(c[h]), std::bit_cast<uint32_t>(c[h + 1])});
      c[h] = c[h + 1] = 0;
    }
    if constexpr (F::zeros)
      LOWBIT_UNROLL
    for (int j = 0; j < NT; ++j) {
      if (a.w_zero && lane < 4)
        shared_store(slot + T::slot_bytes + (j * 8 + lane * 2) * 4,
                     u32x2{static_cast<uint32_t>(q_sums[j][0]), static_cast<uint32_t>(q_sums[j][1])});
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) q_sums[j][i] = 0;
    }
  };

  // A step's products; where a segment ends the sums are left, but for the unit's last.
  const auto compute = [&](const operands& o, int step, int unit_end, segment_walk& at, int& piece) {
    LOWBIT_UNROLL
    for (int k32 = 0; k32 < 4; ++k32) {
      uint32_t w[MT][4], x[NT][2];
      LOWBIT_UNROLL
      for (int i = 0; i < MT; ++i) o.w[i].operands(k32 * k32_words<F::bits>, w[i]);
      LOWBIT_UNROLL
      for (int j = 0; j < NT; ++j) {
        const u32x4& v = o.x[j][k32 / 2];
        x[j][0] = k32 % 2 ? v.z : v.x;
        x[j][1] = k32 % 2 ? v.w : v.y;
      }
      if constexpr (!F::zeros) {
        multiply(w, x);
      } else {
        const int column = step * step_columns + k32 * 32;
        if (a.whole_steps || at.end > column + 32) {
          multiply(w, x);
        } else {
          if (at.end == column + 16) {
            uint32_t half[NT][2];
            LOWBIT_UNROLL
            for (int j = 0; j < NT; ++j) half_of<F::bits>(half[j], x[j], 0);
            multiply(w, half);
            leave(piece++);
            at.advance(a);
            LOWBIT_UNROLL
            for (int j = 0; j < NT; ++j) half_of<F::bits>(x[j], x[j], 1);
          }
          multiply(w, x);
          if (at.end == column + 32 && column + 32 < unit_end) {
            leave(piece++);
            at.advance(a);
          }
        }
      }
    }
  };

  // The chain of this thread's outputs: row thread / 8 of W, rows thread % 8 + 8 j of x.
  const int row = thread_index() / 8, n = strip * static_cast<int>(strip_rows) + strip_half * 32 + row;
  float y[NT] = {};
  sum joined[NT] = {};
  int32_t joined_q[NT] = {};
  int32_t x_zero[NT] = {};
  if (F::zeros && a.x_zero)
    LOWBIT_UNROLL
  for (int j = 0; j < NT; ++j) {
    const int m = (first_tile + j) * 8 + thread_index() % 8;
    if (m < a.out.m) x_zero[j] = global_load<int32_t>(a.x_zero + m * a.x_zero_row);
  }
  struct segment_scales {
    float w;
    int32_t w_zero, code_sum;
  };
  const auto scales_of = [&](const segment_walk& at) {
    segment_scales s{1.0f, 0, 0};
    const int64_t index = at.scale_index(a, n);
    if (F::zeros || a.groups > 1) s.w = load_float(a.w_scale, index, a.w_scale_dtype);
    if constexpr (F::zeros) {
      if (a.w_zero) s.w_zero = global_load<int8_t>(a.w_zero + index);
      if (a.x_zero) s.code_sum = global_load<int32_t>(a.column_sums + index);
    }
    return s;
  };
  const auto join = [&](int from, int piece, int j) {
    const uint32_t slot = slots + (from * a.pieces + piece) * T::piece_bytes;
    const uint32_t bits = shared_load<uint32_t>(slot + (j * 256 + thread_index()) * 4);
    if constexpr (F::zeros) {
      joined[j] += static_cast<int32_t>(bits);
      if (a.w_zero)
        joined_q[j] += shared_load<int32_t>(slot + T::slot_bytes + (j * 8 + thread_index() % 8) * 4);
    } else {
      joined[j] = as_float(bits);
    }
  };
  const auto end_segment = [&](const segment_walk& at, const segment_scales& scales, const float (&x_scale)[NT]) {
    const int columns = at.columns(a);
    LOWBIT_UNROLL
    for (int j = 0; j < NT; ++j) {
      if constexpr (F::zeros) {
        int32_t s = F::value(joined[j]);
        if (a.w_zero || a.x_zero)
          s = without_zeros(s, scales.w_zero, joined_q[j], x_zero[j], scales.code_sum, columns);
        if (columns) y[j] = multiply_add(static_cast<float>(s), scales.w, y[j]);
        joined[j] = 0;
        joined_q[j] = 0;
      } else if (a.groups > 1 || a.x_scale_segment) {
        y[j] = multiply_add(joined[j], scales.w * x_scale[j], y[j]);
      } else {
        y[j] = y[j] + joined[j];
      }
    }
  };
  const auto x_scales_of = [&](const segment_walk& at, float(&to)[NT]) {
    LOWBIT_UNROLL
    for (int j = 0; j < NT; ++j) {
      const int m = (first_tile + j) * 8 + thread_index() % 8;
      to[j] = !F::zeros && a.x_scale_segment && m < a.out.m
                  ? global_load<float>(a.x_scale + m * a.x_scale_row + at.end / step_columns - 1)
                  : 1.0f;
    }
  };

  const int unit = F::zeros ? 1 : a.unit, round_steps = T::warps * unit;
  operands next;
  if (warp * unit < a.steps) load(warp * unit, next);
  bool kept = false;
  for (int first = 0; first < a.steps; first += round_steps) {
    const int begin = first + warp * unit, end = begin + unit < a.steps ? begin + unit : a.steps;
    segment_walk own = segment_walk::at(a, (begin < a.steps ? begin : a.steps - 1) * step_columns);
    int piece = 0;
    for (int step = begin; step < end; ++step) {
      const operands now = next;
      const int following = step + 1 < end ? step + 1 : begin + round_steps;
      if (following < a.steps) load(following, next);
      compute(now, step, end * step_columns, own, piece);
    }
    // Kept where this round and the next are one segment's.
    const segment_walk here = segment_walk::at(a, first * step_columns);
    const auto capped = [&](int step) { return step < a.steps ? step : a.steps; };
    const bool were_kept = kept;
    kept = F::zeros && first + round_steps < a.steps && here.end >= capped(first + 2 * round_steps) * step_columns;
    if (kept) continue;

    if (were_kept || begin < a.steps) leave(piece);
    const auto starts = [&](int from) { return (first + from * unit) * step_columns; };
    if (were_kept) {  // one segment's, of all warps
      const segment_scales scales = scales_of(here);
      float x_scale[NT];
      x_scales_of(here, x_scale);
      sync_threads();
      LOWBIT_UNROLL
      for (int from = 0; from < T::warps; ++from)
        LOWBIT_UNROLL
      for (int j = 0; j < NT; ++j) join(from, 0, j);
      if (here.end <= capped(first + round_steps) * step_columns) end_segment(here, scales, x_scale);
    } else if (a.whole_steps) {
      segment_scales scales[T::warps];  // all asked for before the first is waited for
      float x_scale[T::warps][NT];
      LOWBIT_UNROLL
      for (int from = 0; from < T::warps; ++from) {
        const segment_walk at =
            segment_walk::at(a, starts(from) < a.steps * step_columns ? starts(from) : first * step_columns);
        scales[from] = scales_of(at);
        x_scales_of(at, x_scale[from]);
      }
      sync_threads();
      LOWBIT_UNROLL
      for (int from = 0; from < T::warps; ++from) {
        if (first + from * unit >= a.steps) break;
        const segment_walk at = segment_walk::at(a, starts(from));
        LOWBIT_UNROLL
        for (int j = 0; j < NT; ++j) join(from, 0, j);
        if (at.end <= capped(first + (from + 1) * unit) * step_columns) end_segment(at, scales[from], x_scale[from]);
      }
    } else {
      sync_threads();
      LOWBIT_UNROLL_N(1)
      for (int from = 0; from < T::warps && first + from * unit < a.steps; ++from) {
        segment_walk at = segment_walk::at(a, starts(from));
        const int unit_end = starts(from) + unit * step_columns;
        LOWBIT_UNROLL_N(1)
        for (int p = 0;; ++p) {
          LOWBIT_UNROLL
          for (int j = 0; j < NT; ++j) join(from, p, j);
          if (at.end > unit_end) break;
          float x_scale[NT];
          x_scales_of(at, x_scale);
          end_segment(at, scales_of(at), x_scale);
          if (at.end == unit_end) break;
          at.advance(a);
        }
      }
    }
    sync_threads();  // slots are free
  }

  LOWBIT_UNROLL
  for (int j = 0; j < NT; ++j)
    shared_store(staging + staging_offset(32, j * 8 + thread_index() % 8, row), y[j]);
  sync_threads();
  constexpr int workers = 32 * T::x_rows / 4 < T::threads ? 32 * T::x_rows / 4 : T::threads;
  if (thread_index() < workers)
    store_staged<32, T::x_rows, workers>(a.out, staging, first_tile * 8, strip * strip_rows + strip_half * 32,
                                         thread_index(), final_factor<F>{a});
}

template <class F, int NT>
lowbit_status run_skinny(const byte_arguments& a, void* stream) {
  using T = bytes_skinny<F, NT>;
  launch_shape shape{};
  shape.grid_x = a.strips * 2;
  shape.grid_y = (a.x_tiles + NT - 1) / NT;
  shape.threads = T::threads;
  shape.shared_bytes = T::shared_bytes(a.pieces);
  shape.stream = stream;
  return launch<bytes_skinny_kernel<F, NT>>(shape, a);
}

}  // namespace lowbit::cuda
