// 8-bit x W for more rows of x: a CTA makes 128 rows of W x 32 NT of x, 8 warps of 64 x 8 NT.
//
//   global --cp.async, 3 stages of 128 columns--> shared --16 bytes a lane--> registers --MMA--> chain --> y
//
// A stage is [2 strips][tiles of a step][4 x 16 rows][lane][16 bytes] of W and [4 NT tiles of 8 rows][2 x 64 columns]
// [lane][16 bytes] of x: copies and loads are linear, without bank conflicts.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/generic/bytes.h"

namespace lowbit::cuda {

template <class F, int NT>
struct bytes_tile {
  static constexpr int threads = 256, stages = 3;
  static constexpr int w_rows = 128, x_rows = 32 * NT;
  static constexpr int row_tiles = 4;  // of 16 rows of W, a warp's
  static constexpr int strip_step = step_loads<F::bits> * 4 * 512;
  static constexpr int x_step = 1024;  // of 8 rows
  static constexpr int w_bytes = 2 * strip_step, x_bytes = 4 * NT * x_step, stage_bytes = w_bytes + x_bytes;
  static constexpr int staging = staging_bytes(64, 8);
  static constexpr int shared_bytes = stages * stage_bytes > 8 * staging ? stages * stage_bytes : 8 * staging;
};

// The fp32 sums of a warp, and what scales the segment that is being multiplied: loaded ahead of its end.
template <class F, int NT>
struct tile_chain {
  static constexpr int MT = bytes_tile<F, NT>::row_tiles;
  float y[MT][NT][4];
  float w_scale[MT][2], x_scale[NT][2];

  LOWBIT_DEVICE void clear() {
    LOWBIT_UNROLL
    for (int i = 0; i < MT * NT * 4; ++i) y[i / (NT * 4)][i / 4 % NT][i % 4] = 0;
  }
  LOWBIT_DEVICE void prepare(const byte_arguments& a, const segment_walk& at, int n, int m) {
    if (F::zeros || a.groups > 1) {
      const int64_t first = at.scale_index(a, n);  // the warp's rows are a strip's 64
      LOWBIT_UNROLL
      for (int i = 0; i < MT * 2; ++i) w_scale[i / 2][i % 2] = load_float(a.w_scale, first + i * 8, a.w_scale_dtype);
    }
    if (!F::zeros && a.x_scale_segment) {
      LOWBIT_UNROLL
      for (int i = 0; i < NT * 2; ++i) {
        const int row = m + i / 2 * 8 + i % 2;
        x_scale[i / 2][i % 2] =
            row < a.out.m ? global_load<float>(a.x_scale + row * a.x_scale_row + at.end / step_columns - 1) : 0;
      }
    }
  }
  // n, m: of the lane's first accumulator.
  LOWBIT_DEVICE void add(const byte_arguments& a, const segment_walk& at, int n, int m,
                         const typename F::sum (&sums)[MT][NT][4], const int32_t (&q_sums)[NT][4]) {
    const int columns = at.columns(a);
    if (columns == 0) return;
    LOWBIT_UNROLL
    for (int i = 0; i < MT; ++i) {
      LOWBIT_UNROLL
      for (int h = 0; h < 2; ++h) {
        if constexpr (F::zeros) {
          const int row = 16 * i + 8 * h;
          const int w_zero = a.w_zero ? global_load<int8_t>(a.w_zero + at.scale_index(a, n) + row) : 0;
          const int code_sum = a.x_zero ? global_load<int32_t>(a.column_sums + at.sum_index(a, n) + row) : 0;
          LOWBIT_UNROLL
          for (int j = 0; j < NT * 2; ++j) {
            int32_t s = F::value(sums[i][j / 2][2 * h + j % 2]);
            if (a.w_zero || a.x_zero) {
              const int own = m + j / 2 * 8 + j % 2;
              const int x_zero = a.x_zero && own < a.out.m ? global_load<int32_t>(a.x_zero + own * a.x_zero_row) : 0;
              s = without_zeros(s, w_zero, q_sums[j / 2][j % 2], x_zero, code_sum, columns);
            }
            float& to = y[i][j / 2][2 * h + j % 2];
            to = multiply_add(static_cast<float>(s), w_scale[i][h], to);
          }
        } else {
          LOWBIT_UNROLL
          for (int j = 0; j < NT * 2; ++j) {
            float& to = y[i][j / 2][2 * h + j % 2];
            const float s = sums[i][j / 2][2 * h + j % 2];
            if (a.groups > 1 || a.x_scale_segment)
              to = multiply_add(
                  s, (a.groups > 1 ? w_scale[i][h] : 1.0f) * (a.x_scale_segment ? x_scale[j / 2][j % 2] : 1.0f), to);
            else
              to = to + s;
          }
        }
      }
    }
  }
};

// Blocks of y in an order that keeps 8 blocks of x and the strips they meet in L2.
LOWBIT_DEVICE void block_of(int index, int w_blocks, int x_blocks, int& w_block, int& x_block) {
  constexpr int together = 8;
  const int band = index / (together * w_blocks) * together;
  const int height = x_blocks - band < together ? x_blocks - band : together, inside = index - band * w_blocks;
  w_block = inside / height;
  x_block = band + inside % height;
}

// What a kernel knows of the segments. Registers hold 64 x 32 sums of a warp without a chain, 64 x 24 with one, and
// 64 x 16 where segments end anywhere.
enum class segments { one, whole_steps, any };

template <class F, int NT, segments S>
LOWBIT_KERNEL((bytes_tile<F, NT>::threads), 1)
void bytes_tiled_kernel(const byte_arguments a) {
  using T = bytes_tile<F, NT>;
  using sum = typename F::sum;
  constexpr int MT = T::row_tiles;
  const uint32_t shared = shared_base();
  const int lane = lane_index(), warp = warp_index(), warp_w = warp % 2, warp_x = warp / 2;
  int w_block, x_block;
  block_of(cta_index(), (a.strips + 1) / 2, (a.x_tiles + 4 * NT - 1) / (4 * NT), w_block, x_block);
  const int strip = 2 * w_block + warp_w, tile = x_block * 4 * NT + warp_x * NT;
  // Rows past the last strip read the last one's scales; they are not stored.
  const int n = (strip < a.strips ? strip : a.strips - 1) * static_cast<int>(strip_rows) + lane / 4;
  const int m = tile * 8 + lane % 4 * 2;

  const auto bring = [&](int step) {  // 16 bytes a thread and turn
    const uint32_t stage = shared + step % T::stages * T::stage_bytes;
    LOWBIT_UNROLL
    for (int i = 0; i < T::w_bytes / 16; i += T::threads) {
      const int piece = i + thread_index(), of = piece * 16 / T::strip_step, offset = piece * 16 % T::strip_step;
      const int from = 2 * w_block + of;
      if (T::w_bytes / 16 % T::threads == 0 || piece < T::w_bytes / 16)
        async_copy<16, cache::keep>(
            stage + piece * 16,
            a.w + (from < a.strips ? from : 0) * a.w_strip_bytes + static_cast<int64_t>(step) * T::strip_step + offset,
            from < a.strips ? 16 : 0);
    }
    LOWBIT_UNROLL
    for (int i = 0; i < T::x_bytes / 16; i += T::threads) {
      const int piece = i + thread_index(), from = x_block * 4 * NT + piece * 16 / T::x_step;
      async_copy<16>(stage + T::w_bytes + piece * 16,
                     a.x + (static_cast<int64_t>(from < a.x_tiles ? from : 0) * a.steps + step) * T::x_step +
                         piece * 16 % T::x_step,
                     from < a.x_tiles ? 16 : 0);
    }
  };

  sum sums[MT][NT][4] = {};
  int32_t q_sums[NT][4] = {};  // sums of q, where W has zero points: a product with ones
  const uint32_t ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
  tile_chain<F, NT> chain;
  chain.clear();
  segment_walk at = segment_walk::at(a, 0);
  const auto end_segment = [&] {
    if (S == segments::one) chain.prepare(a, at, n, m);
    chain.add(a, at, n, m, sums, q_sums);
    LOWBIT_UNROLL
    for (int i = 0; i < MT * NT * 4; ++i) sums[i / (NT * 4)][i / 4 % NT][i % 4] = 0;
    LOWBIT_UNROLL
    for (int i = 0; i < NT * 4; ++i) q_sums[i / 4][i % 4] = 0;
    if (at.end == a.steps * step_columns) return;
    at.advance(a);
    chain.prepare(a, at, n, m);
  };
  const auto multiply = [&](const uint32_t (&w)[4], int i, const uint32_t (&x)[NT][2]) {
    LOWBIT_UNROLL
    for (int j = 0; j < NT; ++j) F::multiply(sums[i][j], w, x[j]);
  };
  const auto multiply_ones = [&](const uint32_t (&x)[NT][2]) {
    if constexpr (F::zeros) {
      LOWBIT_UNROLL
      for (int j = 0; j < NT; ++j) mma_m16n8k32_s8(q_sums[j], ones, x[j]);
    }
  };

  LOWBIT_UNROLL
  for (int i = 0; i < T::stages - 1; ++i) {
    if (i < a.steps) bring(i);
    async_commit();
  }
  if (S != segments::one) chain.prepare(a, at, n, m);

  for (int step = 0; step < a.steps; ++step) {
    async_wait<T::stages - 2>();
    sync_threads();  // the step is there for all, and the stage of the step before free
    if (step + T::stages - 1 < a.steps) bring(step + T::stages - 1);
    async_commit();
    const uint32_t stage = shared + step % T::stages * T::stage_bytes;
    const uint32_t w_stage = stage + warp_w * T::strip_step + lane * 16;
    const uint32_t x_stage = stage + T::w_bytes + warp_x * NT * T::x_step + lane * 16;

    if (S != segments::any || a.whole_steps) {
      weight_words<F::bits> w[MT];
      if constexpr (F::bits < 8) {
        LOWBIT_UNROLL
        for (int i = 0; i < MT; ++i) {
          LOWBIT_UNROLL
          for (int load = 0; load < step_loads<F::bits>; ++load)
            w[i].set(load, shared_load<u32x4>(w_stage + (load * 4 + i) * 512));
        }
      }
      LOWBIT_UNROLL
      for (int k64 = 0; k64 < 2; ++k64) {
        u32x4 x64[NT];
        LOWBIT_UNROLL
        for (int j = 0; j < NT; ++j) x64[j] = shared_load<u32x4>(x_stage + j * T::x_step + k64 * 512);
        LOWBIT_UNROLL
        for (int half = 0; half < 2; ++half) {
          uint32_t x[NT][2];
          LOWBIT_UNROLL
          for (int j = 0; j < NT; ++j) {
            x[j][0] = half ? x64[j].z : x64[j].x;
            x[j][1] = half ? x64[j].w : x64[j].y;
          }
          LOWBIT_UNROLL
          for (int i = 0; i < MT; ++i) {
            uint32_t operand[4];
            if constexpr (F::bits == 8) {  // a tile is a k32: loaded when its turn comes
              const u32x4 v = shared_load<u32x4>(w_stage + ((k64 * 2 + half) * 4 + i) * 512);
              operand[0] = v.x;
              operand[1] = v.y;
              operand[2] = v.z;
              operand[3] = v.w;
            } else {
              w[i].operands((k64 * 2 + half) * k32_words<F::bits>, operand);
            }
            multiply(operand, i, x);
          }
          if (F::zeros && a.w_zero) multiply_ones(x);
        }
      }
      if (S != segments::one && at.end == (step + 1) * step_columns) end_segment();
      continue;
    }

    // Segments end inside the step, at multiples of 16.
    if constexpr (S == segments::any) {
      LOWBIT_UNROLL_N(1)
      for (int k32 = 0; k32 < 4; ++k32) {
        const int column = step * step_columns + k32 * 32;
        const bool split = at.end == column + 16;
        LOWBIT_UNROLL_N(1)
        for (int half = 0; half <= (split ? 1 : 0); ++half) {
          uint32_t x[NT][2];
          LOWBIT_UNROLL
          for (int j = 0; j < NT; ++j) {
            const u32x2 v = shared_load<u32x2>(x_stage + j * T::x_step + k32 / 2 * 512 + k32 % 2 * 8);
            const uint32_t whole[2] = {v.x, v.y};
            half_of<F::bits>(x[j], whole, half);
            if (!split) {
              x[j][0] = v.x;
              x[j][1] = v.y;
            }
          }
          LOWBIT_UNROLL
          for (int i = 0; i < MT; ++i) {
            constexpr int words = k32_words<F::bits>;
            uint32_t word[words], operand[4];
            LOWBIT_UNROLL
            for (int c = 0; c < words; ++c)
              word[c] = shared_load<uint32_t>(w_stage + (k32 * words / 4 * 4 + i) * 512 + (k32 * words % 4 + c) * 4);
            weight_words<F::bits>::decode(word, operand);
            multiply(operand, i, x);
          }
          if (F::zeros && a.w_zero) multiply_ones(x);
          if (at.end == column + (split && half == 0 ? 16 : 32)) end_segment();
        }
      }
    }
  }

  if (S == segments::one) end_segment();
  async_wait<0>();
  sync_threads();  // the stages become staging
  LOWBIT_UNROLL
  for (int j = 0; j < NT; ++j) {
    float y[MT][4];
    LOWBIT_UNROLL
    for (int i = 0; i < MT * 4; ++i) y[i / 4][i % 4] = chain.y[i / 4][j][i % 4];
    store_tile<MT>(a.out, y, (tile + j) * 8, strip * strip_rows, shared + warp * T::staging, final_factor<F>{a});
  }
}

template <class F, int NT, segments S>
lowbit_status run_tiled(const byte_arguments& a, void* stream) {
  using T = bytes_tile<F, NT>;
  launch_shape shape{};
  shape.grid_x = (a.strips + 1) / 2 * ((a.x_tiles + 4 * NT - 1) / (4 * NT));
  shape.threads = T::threads;
  shape.shared_bytes = T::shared_bytes;
  shape.stream = stream;
  return launch<bytes_tiled_kernel<F, NT, S>>(shape, a);
}

}  // namespace lowbit::cuda
