// y = x W^T with W decoded on the way, by mma.sync: one kernel for GEMV, small m and prefill, on every GPU from sm_80.
//
//   CTA     rows of W (32 for each warp along n) x columns of x^T (8 tiles_m for each warp along m), K in steps of 128
//   stage   what a step needs, in shared memory: x (swizzled), codes as they lie in memory, scales, zero points
//   warp    two fragment rows of W: codes to A registers, times 8-column fragments of x
//
// The order of sums. K is cut into slices, a number that n and k alone decide (weight_only_model.h). In a slice an MMA
// adds 16 columns at a time, ascending, to sums that start at 0. Slices are added in ascending order. Every tile keeps
// to it, whether a CTA does one slice or all of them, so a row of y has the same bits for every m.
#pragma once

#include "cuda/generic/decode.h"
#include "cuda/sm80/weight_only_outputs.h"
#include "cuda/sm80/weight_only_stage.h"

namespace lowbit::cuda::sm80 {

// T: bf16_t or f16_t. Codes: how W decodes (generic/decode.h).
// Producer: a warp of its own starts all copies. In small tiles they would cost the others two instructions a weight.
template <class T_, class Codes_, int WarpsN, int WarpsM, int TilesM, bool Producer>
struct weight_only_config {
  using T = T_;
  using codes = Codes_;
  static constexpr int warps_n = WarpsN, warps_m = WarpsM, tiles_m = TilesM, tiles_n = 2;
  static constexpr bool producer = Producer;
  static constexpr int workers = 32 * warps_n * warps_m, threads = workers + (producer ? 32 : 0);
  static constexpr int loaders = producer ? 32 : threads;
  static constexpr int rows = 16 * tiles_n * warps_n;
  static constexpr int columns = 8 * tiles_m * warps_m;
  // Two on an SM, but for int8, whose two offsets and scales a product need more registers than 96.
  static constexpr int min_ctas = tiles_m <= 2 && !(codes::bits == 8 && codes::offset) ? 2 : 1;
};

// ---- scales --------------------------------------------------------------------------------------------------

template <int Dtype>
LOWBIT_DEVICE float shared_number(uint32_t address) {
  if constexpr (Dtype == LOWBIT_F32)
    return shared_load<float>(address);
  else if constexpr (Dtype == LOWBIT_F16 || Dtype == LOWBIT_BF16)
    return number_of(shared_load<uint16_t>(address), Dtype);
  else
    return number_of(shared_load<uint8_t>(address), Dtype);
}

// The scales and offsets of a step's groups. Lane t of a row holds groups t and t + 4 of the step, rows g and g + 8 in
// one word; at the first column of a group its lane gives them to the others.
template <class C>
struct step_scales {
  using T = typename C::T;
  uint32_t scale[C::tiles_n][2], offset[C::tiles_n][2];
  uint32_t begins;  // bit i: a group begins at the step's i-th 16 columns
  int next;         // group of the step

  LOWBIT_DEVICE void load(const stage_plan& plan, uint32_t stage, const step_groups& groups, int first_row) {
    begins = groups.begins;
    next = 0;
    const int g = lane_index() / 4, t = lane_index() % 4;
    LOWBIT_UNROLL
    for (int s = 0; s < 2; ++s) {
      if (s == 1 && groups.count <= 4) break;
      const int slot = t + 4 * s < groups.count ? t + 4 * s : groups.count - 1;
      const int row = first_row % 64 + g, group = first_row / 64 * plan.slots + slot;
      const uint32_t at = stage + plan.scales_at + group * plan.scale_pitch + (row << plan.scale_shift);
      switch (plan.scale_dtype) {
        case LOWBIT_F32:
          load_scales<LOWBIT_F32>(plan, at, s);
          break;
        case LOWBIT_F16:
          load_scales<LOWBIT_F16>(plan, at, s);
          break;
        case LOWBIT_BF16:
          load_scales<LOWBIT_BF16>(plan, at, s);
          break;
        case LOWBIT_E8M0:
          load_scales<LOWBIT_E8M0>(plan, at, s);
          break;
        default:
          load_scales<LOWBIT_E4M3>(plan, at, s);
      }
      if constexpr (C::codes::offset) load_zeros(plan, stage + plan.zeros_at + group * slot_pitch(1) + row, s);
    }
  }

  LOWBIT_DEVICE void advance(row_scales (&current)[C::tiles_n], int i) {
    if (!(begins >> i & 1)) return;
    const int source = (lane_index() & 28) | (next & 3);
    const bool upper = next >= 4;
    ++next;
    LOWBIT_UNROLL
    for (int r = 0; r < C::tiles_n; ++r) {
      const uint32_t s = shuffle(upper ? scale[r][1] : scale[r][0], source);
      LOWBIT_UNROLL
      for (int half = 0; half < 2; ++half) current[r].scale[half] = both_halves<T>(s, half);
      if constexpr (C::codes::offset) {
        const uint32_t o = shuffle(upper ? offset[r][1] : offset[r][0], source);
        LOWBIT_UNROLL
        for (int half = 0; half < 2; ++half) current[r].offset[half] = both_halves<T>(o, half);
      }
    }
  }

 private:
  template <int Dtype>
  LOWBIT_DEVICE void load_scales(const stage_plan& plan, uint32_t at, int s) {
    constexpr int row = dtype_bytes(Dtype);
    LOWBIT_UNROLL
    for (int i = 0; i < C::tiles_n; ++i)
      scale[i][s] = pack2<T>(shared_number<Dtype>(at + 16 * i * row) * plan.scale_factor,
                             shared_number<Dtype>(at + (16 * i + 8) * row) * plan.scale_factor);
  }
  LOWBIT_DEVICE void load_zeros(const stage_plan& plan, uint32_t at, int s) {
    LOWBIT_UNROLL
    for (int i = 0; i < C::tiles_n; ++i) {
      float zero[2] = {0, 0};
      if (plan.zero_points) {
        zero[0] = static_cast<float>(shared_load<int8_t>(at + 16 * i));
        zero[1] = static_cast<float>(shared_load<int8_t>(at + 16 * i + 8));
      }
      offset[i][s] = pack2<T>(-plan.bias - zero[0], -plan.bias - zero[1]);
    }
  }
};

// Where K is one group, its scale waits for the sums and the zero point is loaded once.
template <class C>
LOWBIT_DEVICE void constant_scales(const arguments& a, row_scales (&current)[C::tiles_n], int first_row) {
  using T = typename C::T;
  const uint32_t scale = pack2<T>(a.plan.scale_factor, a.plan.scale_factor);
  LOWBIT_UNROLL
  for (int r = 0; r < C::tiles_n; ++r) LOWBIT_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + 16 * r + 8 * half + lane_index() / 4;
    float offset = -a.plan.bias;
    if (a.plan.zero_points && row < a.rows_packed)
      offset -= static_cast<float>(global_load<int8_t>(a.zero_points + row));
    current[r].scale[half] = scale;
    current[r].offset[half] = pack2<T>(offset, offset);
  }
}

// ---- one step of 128 columns -----------------------------------------------------------------------------------

// B for 32 columns: b[0], b[1] of the first 16, then of the second. Bytes lie four columns to a register of A, so
// their 16s are columns 4 t, 4 t + 1 and 4 t + 2, 4 t + 3 of both halves.
template <class C>
LOWBIT_DEVICE void load_x(uint32_t (&b)[C::tiles_m][4], uint32_t x, int first_column, int k32) {
  const int lane = lane_index();
  if constexpr (C::codes::bits == 8) {
    const int g = lane / 4, t = lane % 4;
    const uint32_t row = x + (first_column + g) * x_pitch + t % 2 * 8;
    const uint32_t low = row + swizzled(4 * k32 + t / 2, g) * 16, high = row + swizzled(4 * k32 + 2 + t / 2, g) * 16;
    LOWBIT_UNROLL
    for (int j = 0; j < C::tiles_m; ++j) {
      const u32x2 v = shared_load<u32x2>(low + j * 8 * x_pitch), w = shared_load<u32x2>(high + j * 8 * x_pitch);
      b[j][0] = v.x;
      b[j][1] = w.x;
      b[j][2] = v.y;
      b[j][3] = w.y;
    }
  } else {
    const uint32_t address = x + (first_column + lane % 8) * x_pitch + swizzled(4 * k32 + lane / 8, lane % 8) * 16;
    LOWBIT_UNROLL
    for (int j = 0; j < C::tiles_m; ++j) ldmatrix<4>(b[j], address + j * 8 * x_pitch);
  }
}

template <class C>
LOWBIT_DEVICE void multiply_step(float (&sums)[C::tiles_n][C::tiles_m][4], row_scales (&current)[C::tiles_n],
                                 const arguments& a, uint32_t stage, const step_groups& groups, int warp_n,
                                 int warp_m) {
  constexpr int tile_k = 256 / C::codes::bits;
  step_scales<C> scales;
  if (a.plan.grouped) scales.load(a.plan, stage, groups, warp_n * 16 * C::tiles_n);
  const int first_tile = warp_n * C::tiles_n;
  const uint32_t codes = stage + a.plan.codes_at + first_tile / 4 * a.plan.strip_step + first_tile % 4 * 512 +
                         static_cast<uint32_t>(lane_index()) * 16;
  // Columns that are unrolled: a tile of codes or two, as registers allow.
  constexpr int block = C::codes::bits == 8 && C::tiles_m < 8 ? 2 * tile_k : tile_k;
  LOWBIT_UNROLL_N(1)
  for (int first = 0; first < step_columns; first += block) {
    u32x4 words[C::tiles_n];
    LOWBIT_UNROLL
    for (int k32 = 0; k32 < block / 32; ++k32) {
      if (k32 * 32 % tile_k == 0) {
        LOWBIT_UNROLL
        for (int r = 0; r < C::tiles_n; ++r)
          words[r] = shared_load<u32x4>(codes + (first + k32 * 32) / tile_k * 2048 + r * 512);
      }
      uint32_t b[C::tiles_m][4];
      load_x<C>(b, stage, warp_m * 8 * C::tiles_m, first / 32 + k32);
      row_scales later[C::tiles_n];
      if constexpr (C::codes::bits == 8) {
        if (a.plan.grouped) scales.advance(current, first / 16 + 2 * k32);
        LOWBIT_UNROLL
        for (int r = 0; r < C::tiles_n; ++r) later[r] = current[r];
        if (a.plan.grouped) scales.advance(later, first / 16 + 2 * k32 + 1);
      }
      LOWBIT_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int k16 = 2 * k32 + h;
        if (C::codes::bits < 8 && a.plan.grouped) scales.advance(current, first / 16 + k16);
        LOWBIT_UNROLL
        for (int r = 0; r < C::tiles_n; ++r) {
          uint32_t fragment[4];
          decode<T_of<C>, typename C::codes>(fragment, words[r], k16 % (tile_k / 16), current[r],
                                             C::codes::bits == 8 ? later[r] : current[r], a.decode);
          LOWBIT_UNROLL
          for (int j = 0; j < C::tiles_m; ++j) {
            const uint32_t columns[2] = {b[j][2 * h], b[j][2 * h + 1]};
            mma_m16n8k16<T_of<C>>(sums[r][j], fragment, columns);
          }
        }
      }
      if constexpr (C::codes::bits == 8) {
        LOWBIT_UNROLL
        for (int r = 0; r < C::tiles_n; ++r) current[r] = later[r];
      }
    }
  }
}

// ---- the kernel ------------------------------------------------------------------------------------------------

template <class C>
LOWBIT_DEVICE void add_slice(float (&total)[C::tiles_n][C::tiles_m][4], float (&sums)[C::tiles_n][C::tiles_m][4]) {
  LOWBIT_UNROLL
  for (int r = 0; r < C::tiles_n; ++r) LOWBIT_UNROLL
  for (int j = 0; j < C::tiles_m; ++j) LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    total[r][j][i] += sums[r][j][i];
    sums[r][j][i] = 0;
  }
}

// grid: x = tiles (a.order), y = slices, or 1 where a CTA does all of them
template <class C>
LOWBIT_KERNEL(C::threads, C::min_ctas)
void weight_only_kernel(const arguments a) {
  const uint32_t shared = shared_base();
  const int warp_n = warp_index() % C::warps_n, warp_m = warp_index() / C::warps_n;
  tile_place at;
  a.order.place(cta_index(), at.w_block, at.x_block);
  int slice = cta_index_y();
  const int last_slice = a.split ? slice + 1 : a.slices;
  const int first_step = slice_begin(a, slice), last_step = slice_begin(a, last_slice);

  float total[C::tiles_n][C::tiles_m][4] = {}, sums[C::tiles_n][C::tiles_m][4] = {};
  row_scales current[C::tiles_n] = {};
  if (!a.plan.grouped) constant_scales<C>(a, current, at.w_block * C::rows + warp_n * 16 * C::tiles_n);

  const bool works = !C::producer || warp_index() < C::workers / 32, loads = !C::producer || !works;
  stage_loader<C> loader(a, at, first_step);
  for (int i = 0; loads && i < a.stages - 1; ++i) {
    if (first_step + i < last_step) loader.load(shared + i * a.plan.bytes);
    async_commit();
  }
  group_cursor cursor(a.plan, first_step);
  int slot = 0, slice_end = slice_begin(a, slice + 1);
  for (int step = first_step; step < last_step; ++step) {
    if (loads) wait_for_stage(a.stages);
    sync_threads();  // the stage is there for all, and the one before it has been read by all
    if (loads) {
      if (step + a.stages - 1 < last_step) loader.load(shared + (slot == 0 ? a.stages - 1 : slot - 1) * a.plan.bytes);
      async_commit();
    }
    if (works) multiply_step<C>(sums, current, a, shared + slot * a.plan.bytes, cursor.step(a.plan), warp_n, warp_m);
    cursor.advance(a.plan);
    slot = slot + 1 == a.stages ? 0 : slot + 1;
    if (step + 1 == slice_end) {
      add_slice<C>(total, sums);
      slice_end = slice_begin(a, ++slice + 1);
    }
  }

  async_wait<0>();
  sync_threads();  // all stages have been read
  if (works) stage_sums<C>(shared, total, warp_n, warp_m);
  sync_threads();
  grid_dependency_launch();
  if (!works) return;
  if (a.split)
    store_partials<C>(a, shared, at, cta_index_y());
  else
    store_tile<C>(a, shared, at);
}

}  // namespace lowbit::cuda::sm80
