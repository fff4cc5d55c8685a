// y = x W^T with W decoded on the way, by mma.sync: one kernel for GEMV, small m and prefill, on every GPU from sm_80.
//
//   CTA     rows of W (32 for each warp along n) x columns of x^T (8 tiles_m for each warp along m), K in steps of 128
//   stage   what a step needs, in shared memory: x (swizzled), codes as they lie in memory, scales, zero points
//   warp    two fragment rows of W: codes to A registers, times 8-column fragments of x
//
// W is decoded to its values, which bf16 and fp16 hold; scales wait for sums in fp32.
//
// The order of sums. K is cut into slices, a number that n and k alone decide (weight_only_model.h), a slice into what
// it has of each group and step. There an MMA adds 16 columns at a time, ascending, to sums that start at 0; times the
// scale they are added to the slice's. (Where K is one group, an MMA adds all of the slice.) Slices are added in
// ascending order. Every tile keeps to it, whether a CTA does one slice or all of them, so a row of y has the same bits
// for every m.
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
  static constexpr int min_ctas = tiles_m <= 2 ? 2 : 1;
};

// ---- groups ---------------------------------------------------------------------------------------------------

template <class C>
using accumulators = float[C::tiles_n][C::tiles_m][4];

template <int Dtype>
LOWBIT_DEVICE float shared_number(uint32_t address) {
  if constexpr (Dtype == LOWBIT_F32)
    return shared_load<float>(address);
  else if constexpr (Dtype == LOWBIT_F16 || Dtype == LOWBIT_BF16)
    return number_of(shared_load<uint16_t>(address), Dtype);
  else
    return number_of(shared_load<uint8_t>(address), Dtype);
}

// Of a lane's rows, g and g + 8 of each tile: the scales of the group that is being summed, and what makes its raw
// codes values (twice in a word).
template <class C>
struct row_terms {
  using T = typename C::T;
  float scale[C::tiles_n][2];
  uint32_t offset[C::tiles_n][2];

  // Where K is one group its scale waits for the sums.
  LOWBIT_DEVICE row_terms(const arguments& a, int first_row) {
    LOWBIT_UNROLL
    for (int i = 0; i < 2 * C::tiles_n; ++i) {
      const int row = first_row + 8 * i + lane_index() / 4;
      float value = -a.plan.bias;
      if (C::codes::offset && a.plan.zero_points && !a.plan.grouped && row < a.rows_packed)
        value -= static_cast<float>(global_load<int8_t>(a.zero_points + row));
      scale[i / 2][i % 2] = 1;
      offset[i / 2][i % 2] = pack2<T>(value, value);
    }
  }

  LOWBIT_DEVICE void load(const stage_plan& plan, uint32_t scales, uint32_t zeros) {
    switch (plan.scale_dtype) {
      case LOWBIT_F16:
        load_scales<LOWBIT_F16>(scales);
        break;
      case LOWBIT_BF16:
        load_scales<LOWBIT_BF16>(scales);
        break;
      case LOWBIT_F32:
        load_scales<LOWBIT_F32>(scales);
        break;
      case LOWBIT_E8M0:
        load_scales<LOWBIT_E8M0>(scales);
        break;
      default:
        load_scales<LOWBIT_E4M3>(scales);
    }
    if constexpr (C::codes::offset)
      if (plan.zero_points) load_offsets(plan, zeros);
  }

 private:
  template <int Dtype>
  LOWBIT_DEVICE void load_scales(uint32_t at) {
    LOWBIT_UNROLL
    for (int i = 0; i < 2 * C::tiles_n; ++i)
      scale[i / 2][i % 2] = shared_number<Dtype>(at + 8 * i * dtype_bytes(Dtype));
  }
  LOWBIT_DEVICE void load_offsets(const stage_plan& plan, uint32_t at) {
    LOWBIT_UNROLL
    for (int i = 0; i < 2 * C::tiles_n; ++i) {
      const float value = -plan.bias - static_cast<float>(shared_load<int8_t>(at + 8 * i));
      offset[i / 2][i % 2] = pack2<T>(value, value);
    }
  }
};

// What a step knows of its groups. A segment is the part of a group that lies in it.
template <class C>
struct step_segments {
  uint32_t begins, ends;   // bit i: a segment begins with the step's i-th 16 columns, has ended after them
  uint32_t scales, zeros;  // of the next segment

  LOWBIT_DEVICE bool begins_at(int i) const { return begins >> i & 1; }
  LOWBIT_DEVICE bool ends_after(int i) const { return ends >> i & 1; }
  LOWBIT_DEVICE void next(const stage_plan& plan, row_terms<C>& terms) {
    terms.load(plan, scales, zeros);
    scales += plan.scale_pitch;
    zeros += slot_pitch(1);
  }
};

// total += scale sums, and the sums begin anew.
template <class C>
LOWBIT_DEVICE void end_sums(accumulators<C>& total, accumulators<C>& sums, const row_terms<C>& terms) {
  LOWBIT_UNROLL
  for (int r = 0; r < C::tiles_n; ++r) LOWBIT_UNROLL
  for (int j = 0; j < C::tiles_m; ++j) LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    total[r][j][i] = multiply_add(sums[r][j][i], terms.scale[r][i / 2], total[r][j][i]);
    sums[r][j][i] = 0;
  }
}

// ---- one step of 128 columns -----------------------------------------------------------------------------------

// Where a lane finds its parts of a stage.
template <class C>
struct lane_places {
  uint32_t x[2], codes, scales, zeros;

  LOWBIT_DEVICE lane_places(const stage_plan& plan, int warp_n, int warp_m) {
    const int lane = lane_index(), g = lane / 4, t = lane % 4, first_row = warp_n * 16 * C::tiles_n;
    const uint32_t row = (warp_m * 8 * C::tiles_m + (C::codes::bits == 8 ? g : lane % 8)) * x_pitch;
    if constexpr (C::codes::bits == 8) {
      x[0] = row + swizzled(t / 2, g) * 16 + t % 2 * 8;
      x[1] = row + swizzled(2 + t / 2, g) * 16 + t % 2 * 8;
    } else {
      x[0] = row + swizzled(lane / 8, lane % 8) * 16;
      x[1] = row + swizzled(4 + lane / 8, lane % 8) * 16;
    }
    codes = plan.codes_at + first_row / 64 * plan.strip_step + first_row % 64 * 32 + lane * 16;
    const int slot = first_row / 64 * plan.slots;
    scales = plan.scales_at + slot * plan.scale_pitch + ((first_row % 64 + g) << plan.scale_shift);
    zeros = plan.zeros_at + slot * slot_pitch(1) + first_row % 64 + g;
  }
};

// B for 32 columns: b[0], b[1] of the first 16, then of the second. Bytes lie four columns to a register of A, so
// their 16s are columns 4 t, 4 t + 1 and 4 t + 2, 4 t + 3 of both halves. A row's pieces 4 and up are those below with
// one bit of the address turned, 8 and up 128 bytes on.
template <class C>
LOWBIT_DEVICE void load_x(uint32_t (&b)[C::tiles_m][4], uint32_t stage, const lane_places<C>& at, int k32) {
  const uint32_t further = stage + k32 / 2 * 128;
  if constexpr (C::codes::bits == 8) {
    const uint32_t low = further + (at.x[0] ^ k32 % 2 * 64), high = further + (at.x[1] ^ k32 % 2 * 64);
    LOWBIT_UNROLL
    for (int j = 0; j < C::tiles_m; ++j) {
      const u32x2 v = shared_load<u32x2>(low + j * 8 * x_pitch), w = shared_load<u32x2>(high + j * 8 * x_pitch);
      b[j][0] = v.x;
      b[j][1] = w.x;
      b[j][2] = v.y;
      b[j][3] = w.y;
    }
  } else {
    LOWBIT_UNROLL
    for (int j = 0; j < C::tiles_m; ++j) ldmatrix<4>(b[j], further + at.x[k32 % 2] + j * 8 * x_pitch);
  }
}

// Which 16 of 32 columns of bytes take part: of two groups in turn, or both.
enum class columns { all, first16, second16 };

// 32 columns of bytes.
template <class C>
LOWBIT_DEVICE void multiply_bytes(accumulators<C>& sums, const u32x4 (&words)[C::tiles_n],
                                  const uint32_t (&b)[C::tiles_m][4], const row_terms<C>& terms, columns which,
                                  const decode_constants& c) {
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) LOWBIT_UNROLL
  for (int r = 0; r < C::tiles_n; ++r) {
    uint32_t fragment[4];
    decode_values<T_of<C>, typename C::codes>(fragment, words[r], h, terms.offset[r], c);
    if (which == columns::first16) fragment[2] = fragment[3] = 0;
    if (which == columns::second16) fragment[0] = fragment[1] = 0;
    LOWBIT_UNROLL
    for (int j = 0; j < C::tiles_m; ++j) {
      const uint32_t x[2] = {b[j][2 * h], b[j][2 * h + 1]};
      mma_m16n8k16<T_of<C>>(sums[r][j], fragment, x);
    }
  }
}

// A step's columns; `Segments`: groups begin and end within it.
template <class C, bool Segments>
LOWBIT_DEVICE void multiply_columns(accumulators<C>& total, accumulators<C>& sums, row_terms<C>& terms,
                                    const arguments& a, uint32_t stage, const lane_places<C>& at,
                                    step_segments<C> segments) {
  constexpr int tile_k = 256 / C::codes::bits;
  // Columns that are unrolled: two tiles of codes or one, as registers allow.
  constexpr int block = C::codes::bits == 8 && C::tiles_m < 8 ? 2 * tile_k : tile_k;
  LOWBIT_UNROLL_N(1)
  for (int first = 0; first < step_columns; first += block) {
    u32x4 words[C::tiles_n];
    LOWBIT_UNROLL
    for (int k32 = 0; k32 < block / 32; ++k32) {
      if (k32 * 32 % tile_k == 0) {
        LOWBIT_UNROLL
        for (int r = 0; r < C::tiles_n; ++r)
          words[r] = shared_load<u32x4>(stage + at.codes + (first + k32 * 32) / tile_k * 2048 + r * 512);
      }
      uint32_t b[C::tiles_m][4];
      if constexpr (block % 64 == 0)
        load_x<C>(b, stage + first * 2, at, k32);
      else
        load_x<C>(b, stage, at, first / 32);
      if constexpr (C::codes::bits == 8) {
        if (Segments && segments.begins_at(2 * k32)) segments.next(a.plan, terms);
        if (!Segments || !segments.begins_at(2 * k32 + 1)) {
          multiply_bytes<C>(sums, words, b, terms, columns::all, a.decode);
        } else {  // a product takes columns of both 16s
          LOWBIT_UNROLL_N(1)
          for (int second = 0; second < 2; ++second) {
            if (second) {
              end_sums<C>(total, sums, terms);
              segments.next(a.plan, terms);
            }
            multiply_bytes<C>(sums, words, b, terms, second ? columns::second16 : columns::first16, a.decode);
          }
        }
        if (Segments && segments.ends_after(2 * k32 + 1)) end_sums<C>(total, sums, terms);
      } else {
        LOWBIT_UNROLL
        for (int h = 0; h < 2; ++h) {
          const int k16 = 2 * k32 + h;
          if (Segments && segments.begins_at(k16)) segments.next(a.plan, terms);
          LOWBIT_UNROLL
          for (int r = 0; r < C::tiles_n; ++r) {
            uint32_t fragment[4];
            decode_values<T_of<C>, typename C::codes>(fragment, words[r], k16 % (tile_k / 16), terms.offset[r],
                                                      a.decode);
            LOWBIT_UNROLL
            for (int j = 0; j < C::tiles_m; ++j) {
              const uint32_t x[2] = {b[j][2 * h], b[j][2 * h + 1]};
              mma_m16n8k16<T_of<C>>(sums[r][j], fragment, x);
            }
          }
          if (Segments && segments.ends_after(k16)) end_sums<C>(total, sums, terms);
        }
      }
    }
    segments.begins >>= block / 16;
    segments.ends >>= block / 16;
  }
}

template <class C>
LOWBIT_DEVICE void multiply_step(accumulators<C>& total, accumulators<C>& sums, row_terms<C>& terms, const arguments& a,
                                 uint32_t stage, const lane_places<C>& at, uint32_t begins) {
  // A branch for 16 columns costs a small tile a tenth of its instructions: it has code of its own for long groups.
  constexpr bool short_steps = C::tiles_m <= 2;
  step_segments<C> segments{a.plan.grouped ? begins : 0, a.plan.grouped ? begins >> 1 | 0x80u : 0, stage + at.scales,
                            stage + at.zeros};
  if (short_steps && segments.begins <= 1) {
    if (segments.begins) segments.next(a.plan, terms);
    multiply_columns<C, false>(total, sums, terms, a, stage, at, segments);
    if (segments.begins) end_sums<C>(total, sums, terms);
  } else {
    multiply_columns<C, true>(total, sums, terms, a, stage, at, segments);
  }
}

// ---- the kernel ------------------------------------------------------------------------------------------------

// A warp's part in all steps of a CTA: it starts the copies, multiplies or does both. Sums are left in shared memory.
template <class C, bool Loads, bool Works>
LOWBIT_DEVICE void run_steps(const arguments& a, const tile_place& at, uint32_t shared) {
  int slice = cta_index_y(), slot = 0;
  const int first_step = slice_begin(a, slice), last_step = slice_begin(a, a.split ? slice + 1 : a.slices);
  const int warp_n = warp_index() % C::warps_n, warp_m = warp_index() / C::warps_n;
  const int first_row = at.w_block * C::rows + warp_n * 16 * C::tiles_n;

  accumulators<C> total = {}, sums = {};
  const lane_places<C> places(a.plan, warp_n, warp_m);
  row_terms<C> terms(a, Works ? first_row : a.rows_packed);
  stage_loader<C> loader(a, at, first_step);
  for (int i = 0; Loads && i < a.stages - 1; ++i) {
    if (first_step + i < last_step) loader.load(shared + i * a.plan.bytes);
    async_commit();
  }
  group_cursor cursor(a.plan, first_step);
  int slice_end = slice_begin(a, slice + 1);
  for (int step = first_step; step < last_step; ++step) {
    if (Loads) wait_for_stage(a.stages);
    barrier_sync(1, C::threads);  // the stage is there for all, and the one before it has been read by all
    if (Loads) {
      if (step + a.stages - 1 < last_step) loader.load(shared + (slot == 0 ? a.stages - 1 : slot - 1) * a.plan.bytes);
      async_commit();
    }
    if (Works) {
      multiply_step<C>(total, sums, terms, a, shared + slot * a.plan.bytes, places, cursor.step(a.plan).begins);
      cursor.advance(a.plan);
      if (step + 1 == slice_end) {
        if (!a.plan.grouped)
          end_sums<C>(total, sums, terms);  // the total is that of slices
        else if (a.waiting_sums)
          leave_slice<C>(shared + a.waiting_sums, total, slice, warp_n, warp_m);
        slice_end = slice_begin(a, ++slice + 1);
      }
    }
    slot = slot + 1 == a.stages ? 0 : slot + 1;
  }

  if (Loads) async_wait<0>();
  barrier_sync(1, C::threads);  // all stages have been read
  if (Works && !a.waiting_sums) stage_sums<C>(shared, total, false, warp_n, warp_m);
}

// grid: x = tiles (a.order), y = slices, or 1 where a CTA does all of them
template <class C>
LOWBIT_KERNEL(C::threads, C::min_ctas)
void weight_only_kernel(const arguments a) {
  const uint32_t shared = shared_base();
  tile_place at;
  a.order.place(cta_index(), at.w_block, at.x_block);
  if constexpr (!C::producer)
    run_steps<C, true, true>(a, at, shared);
  else if (warp_index() < C::workers / 32)
    run_steps<C, false, true>(a, at, shared);
  else
    run_steps<C, true, false>(a, at, shared);
  sync_threads();
  grid_dependency_launch();
  if (thread_index() >= C::workers) return;
  if (a.split)
    store_partials<C>(a, shared, at, cta_index_y());
  else
    store_tile<C>(a, shared + a.waiting_sums, at);
}

}  // namespace lowbit::cuda::sm80
