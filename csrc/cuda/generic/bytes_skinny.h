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
  // What a warp leaves of a segment: sums [NT][32 rows of W][8 of x], sums of q [NT][8], and what the chain needs.
  static constexpr int q_sums = NT * 32 * 8 * 4, w_scale = q_sums + NT * 8 * 4, w_zero = w_scale + 128,
                       code_sum = w_zero + 128, x_scale = w_zero, piece_bytes = code_sum + 128;
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

  // One step, held in registers; what a k32 has used is replaced by the step that follows.
  weight_words<F::bits> w_now[MT];
  u32x4 x_now[NT][2];
  const auto load_w = [&](int step, int j) {
    LOWBIT_UNROLL
    for (int i = 0; i < MT; ++i)
      w_now[i].set(
          j, global_load<u32x4, cache::streaming>(w_from + ((static_cast<int64_t>(step) * loads + j) * 4 + i) * 512));
  };
  const auto load_x = [&](int step, int k64) {
    LOWBIT_UNROLL
    for (int j = 0; j < NT; ++j)
      x_now[j][k64] = first_tile + j < a.x_tiles
                          ? global_load<u32x4>(a.x + (static_cast<int64_t>(first_tile + j) * a.steps + step) * 1024 +
                                               k64 * 512 + lane * 16)
                          : u32x4{0, 0, 0, 0};
  };
  const auto load_behind = [&](int step, int k32) {
    if ((k32 + 1) * loads % 4 == 0) load_w(step, (k32 + 1) * loads / 4 - 1);
    if (k32 % 2) load_x(step, k32 / 2);
  };
  const auto load_step = [&](int step) {
    LOWBIT_UNROLL
    for (int k32 = 0; k32 < 4; ++k32) load_behind(step, k32);
  };

  sum sums[MT][NT][4] = {};
  int32_t q_sums[NT][4] = {};
  const uint32_t ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
  const auto multiply = [&](const uint32_t (&w)[MT][4], const uint32_t (&x)[NT][2]) {
    LOWBIT_UNROLL
    for (int i = 0; i < MT * NT; ++i) F::multiply(sums[i / NT][i % NT], w[i / NT], x[i % NT]);
    if constexpr (F::zeros) {
      if (!a.w_zero) return;
      LOWBIT_UNROLL
      for (int j = 0; j < NT; ++j) mma_m16n8k32_s8(q_sums[j], ones, x[j]);
    }
  };
  // What scales a segment: lane i has row i of the 32 of W, and of x. Asked for when its first unit begins.
  struct segment_scales {
    float w = 1, x = 1;
    int32_t w_zero = 0, code_sum = 0;
  } scales;
  const auto prepare = [&](const segment_walk& at) {
    const int n = strip * static_cast<int>(strip_rows) + strip_half * 32 + lane;
    const int64_t index = at.scale_index(a, n);
    if (F::zeros || a.groups > 1) scales.w = load_float(a.w_scale, index, a.w_scale_dtype);
    if constexpr (F::zeros) {
      if (a.w_zero) scales.w_zero = global_load<int8_t>(a.w_zero + index);
      if (a.x_zero) scales.code_sum = global_load<int32_t>(a.column_sums + at.sum_index(a, n));
    } else {
      const int m = first_tile * 8 + lane;
      if (a.x_scale_segment && lane < T::x_rows && m < a.out.m)
        scales.x = global_load<float>(a.x_scale + m * a.x_scale_row + at.end / step_columns - 1);
    }
  };
  // The sums so far to the warp's slot `piece`; they begin anew.
  const auto leave = [&](int piece) {
    const uint32_t slot = slots + (warp * a.pieces + piece) * T::piece_bytes;
    LOWBIT_UNROLL
    for (int i = 0; i < MT * NT * 2; ++i) {
      sum(&c)[4] = sums[i / (NT * 2)][i / 2 % NT];
      const int h = i % 2 * 2, row = i / (NT * 2) * 16 + i % 2 * 8 + lane / 4;
      shared_store<u32x2>(slot + ((i / 2 % NT * 32 + row) * 8 + lane % 4 * 2) * 4,
                          u32x2{std::bit_cast<uint32_t>(c[h]), std::bit_cast<uint32_t>(c[h + 1])});
      c[h] = c[h + 1] = 0;
    }
    shared_store<float>(slot + T::w_scale + lane * 4, scales.w);
    if constexpr (F::zeros) {
      if (a.w_zero) shared_store<int32_t>(slot + T::w_zero + lane * 4, scales.w_zero);
      if (a.x_zero) shared_store<int32_t>(slot + T::code_sum + lane * 4, scales.code_sum);
      LOWBIT_UNROLL
      for (int j = 0; j < NT; ++j) {
        if (a.w_zero && lane < 4)
          shared_store<u32x2>(slot + T::q_sums + (j * 8 + lane * 2) * 4,
                              u32x2{static_cast<uint32_t>(q_sums[j][0]), static_cast<uint32_t>(q_sums[j][1])});
        LOWBIT_UNROLL
        for (int i = 0; i < 4; ++i) q_sums[j][i] = 0;
      }
    } else {
      shared_store<float>(slot + T::x_scale + lane * 4, scales.x);
    }
  };

  // A step's products; where a segment ends the sums are left, but for the unit's last.
  const auto compute = [&](int step, int following, int unit_end, segment_walk& at, int& piece) {
    uint32_t w[MT][4], x[NT][2];
    if (!F::zeros || a.whole_steps) {
      LOWBIT_UNROLL
      for (int k32 = 0; k32 < 4; ++k32) {
        LOWBIT_UNROLL
        for (int i = 0; i < MT; ++i) w_now[i].operands(k32 * k32_words<F::bits>, w[i]);
        LOWBIT_UNROLL
        for (int j = 0; j < NT; ++j) {
          x[j][0] = k32 % 2 ? x_now[j][k32 / 2].z : x_now[j][k32 / 2].x;
          x[j][1] = k32 % 2 ? x_now[j][k32 / 2].w : x_now[j][k32 / 2].y;
        }
        if (following < a.steps) load_behind(following, k32);
        multiply(w, x);
      }
      return;
    }
    if constexpr (F::zeros) {
      // Segments end inside the step, at multiples of 16: two halves of a k32 where it must be.
      LOWBIT_UNROLL_N(1)
      for (int k32 = 0; k32 < 4; ++k32) {
        const int column = step * step_columns + k32 * 32;
        const bool split = at.end == column + 16;
        LOWBIT_UNROLL
        for (int i = 0; i < MT; ++i) w_now[i].operands_at(k32, w[i]);
        LOWBIT_UNROLL_N(1)
        for (int half = 0; half <= (split ? 1 : 0); ++half) {
          LOWBIT_UNROLL
          for (int j = 0; j < NT; ++j) {
            const u32x4 v = k32 / 2 ? x_now[j][1] : x_now[j][0];
            const uint32_t whole[2] = {k32 % 2 ? v.z : v.x, k32 % 2 ? v.w : v.y};
            half_of<F::bits>(x[j], whole, half);
            if (!split) {
              x[j][0] = whole[0];
              x[j][1] = whole[1];
            }
          }
          multiply(w, x);
          const int done = split && half == 0 ? column + 16 : column + 32;
          if (at.end == done && done < unit_end) {
            leave(piece++);
            at.advance(a);
            prepare(at);
          }
        }
      }
      if (following < a.steps) load_step(following);
    }
  };

  // The chain of this thread's outputs: row thread / 8 of W, rows thread % 8 + 8 j of x.
  const int row = thread_index() / 8;
  float y[NT] = {};
  sum joined[NT] = {};
  int32_t joined_q[NT] = {};
  int32_t x_zero[NT] = {};
  if (F::zeros && a.x_zero) {
    LOWBIT_UNROLL
    for (int j = 0; j < NT; ++j) {
      const int m = (first_tile + j) * 8 + thread_index() % 8;
      if (m < a.out.m) x_zero[j] = global_load<int32_t>(a.x_zero + m * a.x_zero_row);
    }
  }
  const auto slot_of = [&](int from, int piece) { return slots + (from * a.pieces + piece) * T::piece_bytes; };
  const auto join = [&](uint32_t slot) {
    LOWBIT_UNROLL
    for (int j = 0; j < NT; ++j) {
      const uint32_t bits = shared_load<uint32_t>(slot + (j * 256 + thread_index()) * 4);
      if constexpr (F::zeros) {
        joined[j] += static_cast<int32_t>(bits);
        if (a.w_zero) joined_q[j] += shared_load<int32_t>(slot + T::q_sums + (j * 8 + thread_index() % 8) * 4);
      } else {
        joined[j] = as_float(bits);
      }
    }
  };
  const auto end_segment = [&](const segment_walk& at, uint32_t slot) {
    const float w_scale = shared_load<float>(slot + T::w_scale + row * 4);
    if constexpr (F::zeros) {
      const int32_t w_zero = a.w_zero ? shared_load<int32_t>(slot + T::w_zero + row * 4) : 0;
      const int32_t code_sum = a.x_zero ? shared_load<int32_t>(slot + T::code_sum + row * 4) : 0;
      const int columns = at.columns(a);
      LOWBIT_UNROLL
      for (int j = 0; j < NT; ++j) {
        int32_t s = F::value(joined[j]);
        if (a.w_zero || a.x_zero) s = without_zeros(s, w_zero, joined_q[j], x_zero[j], code_sum, columns);
        if (columns) y[j] = multiply_add(static_cast<float>(s), w_scale, y[j]);
        joined[j] = 0;
        joined_q[j] = 0;
      }
    } else {
      LOWBIT_UNROLL
      for (int j = 0; j < NT; ++j)
        if (a.groups > 1 || a.x_scale_segment)
          y[j] = multiply_add(joined[j],
                              w_scale * shared_load<float>(slot + T::x_scale + (j * 8 + thread_index() % 8) * 4), y[j]);
        else
          y[j] = y[j] + joined[j];
    }
  };

  const int unit = F::zeros ? 1 : a.unit, round_steps = T::warps * unit;
  if (warp * unit < a.steps) {
    LOWBIT_UNROLL
    for (int j = 0; j < loads; ++j) load_w(warp * unit, j);
  }
  grid_dependency_wait();  // x is there; W was before
  if (warp * unit < a.steps) {
    LOWBIT_UNROLL
    for (int k64 = 0; k64 < 2; ++k64) load_x(warp * unit, k64);
  }
  bool kept = false;
  for (int first = 0; first < a.steps; first += round_steps) {
    const int begin = first + warp * unit, end = begin + unit < a.steps ? begin + unit : a.steps;
    segment_walk own = segment_walk::at(a, (begin < a.steps ? begin : first) * step_columns);
    if (!kept) prepare(own);
    int piece = 0;
    for (int step = begin; step < end; ++step) {
      const int following = step + 1 < end ? step + 1 : begin + round_steps;
      compute(step, following, end * step_columns, own, piece);
    }
    // Kept where this round and the next are one segment's.
    const segment_walk here = segment_walk::at(a, first * step_columns);
    const auto capped = [&](int step) { return step < a.steps ? step : a.steps; };
    const bool were_kept = kept;
    kept = F::zeros && first + round_steps < a.steps && here.end >= capped(first + 2 * round_steps) * step_columns;
    if (kept) continue;

    if (were_kept || begin < a.steps) leave(piece);
    sync_threads();
    if (were_kept) {  // all are one segment's
      LOWBIT_UNROLL
      for (int from = 0; from < T::warps; ++from) join(slot_of(from, 0));
      if (here.end <= capped(first + round_steps) * step_columns) end_segment(here, slot_of(0, 0));
    } else {
      LOWBIT_UNROLL_N(1)
      for (int from = 0; from < T::warps && first + from * unit < a.steps; ++from) {
        segment_walk at = segment_walk::at(a, (first + from * unit) * step_columns);
        const int last = capped(first + (from + 1) * unit) * step_columns;
        LOWBIT_UNROLL_N(1)
        for (int of_warp = 0;; ++of_warp) {
          join(slot_of(from, of_warp));
          if (at.end > last) break;
          end_segment(at, slot_of(from, of_warp));
          if (at.end == last) break;
          at.advance(a);
        }
      }
    }
    sync_threads();  // slots are free
  }

  LOWBIT_UNROLL
  for (int j = 0; j < NT; ++j) shared_store<float>(staging + staging_offset(32, j * 8 + thread_index() % 8, row), y[j]);
  sync_threads();
  constexpr int workers = 32 * T::x_rows / 4 < T::threads ? 32 * T::x_rows / 4 : T::threads;
  if (thread_index() < workers)
    store_staged<32, T::x_rows, workers>(a.out, staging, first_tile * 8, strip * strip_rows + strip_half * 32,
                                         thread_index(), final_factor<F>{a});
}

template <class F, int NT>
lowbit_status run_skinny(const byte_arguments& a, const device_info& device, void* stream) {
  using T = bytes_skinny<F, NT>;
  launch_shape shape{};
  shape.grid_x = a.strips * 2;
  shape.grid_y = (a.x_tiles + NT - 1) / NT;
  shape.threads = T::threads;
  shape.shared_bytes = T::shared_bytes(a.pieces);
  shape.stream = stream;
  shape.dependent = device.arch >= 90;  // on arrange(): the first of W is asked for beside it
  return launch<bytes_skinny_kernel<F, NT>>(shape, a);
}

}  // namespace lowbit::cuda
