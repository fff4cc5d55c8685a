// weight_only on AMX bf16: W is decoded to bf16 A tiles, x are the B tiles, sums come out as [output][row of x].
//
//   m <= 16   4 panels x 1 activation tile   decode a block, multiply it, sums never leave the tiles
//   m <= 32   2 panels x 2                   the same
//   m >  32   2 panels x 2                   a slab of panels and K is decoded into L2 and serves all of m; sums wait
//                                            in memory between slabs, so K is summed in the same order
#pragma once

#include "cpu/amx/activations.h"
#include "cpu/amx/decode.h"
#include "cpu/amx/tile.h"
#include "cpu/amx/tuning.h"

namespace lowbit::cpu {
namespace {

// One 16 x 16 tile of fp32 sums [output][row] to y[row][output].
inline void store_outputs(const gemm_problem& p, const float* sums, int64_t panel, int64_t tile) {
  __m512i r[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_load_si512(sums + 16 * i);
  transpose_16x16(r);
  const int64_t n = panel * panel_rows, rows = p.m - tile * 16 < 16 ? p.m - tile * 16 : 16;
  const __mmask16 mask = first_lanes(p.w.shape.n - n);
  const __m512 bias = p.bias ? load_f32(p.bias, n, p.bias_dtype, mask) : _mm512_setzero_ps();
  const __m512 global_scale = _mm512_set1_ps(p.w.global_scale);
  for (int64_t i = 0; i < rows; ++i)
    store_f32(p.y, (tile * 16 + i) * p.y_stride + n, p.y_dtype,
              _mm512_fmadd_ps(_mm512_castsi512_ps(r[i]), global_scale, bias), mask);
}

template <int NT, int MT>
void weight_only_small(const gemm_problem& p, const activation_tiles& x, int64_t first, int64_t last) {
  const packed_shape& s = p.w.shape;
  alignas(64) uint8_t weights[NT][4 * bf16_decoder::tile_bytes];
  alignas(64) float sums[NT * MT * 256];
  bf16_decoder decoders[NT];
  for (bf16_decoder& d : decoders) d.begin(p.w);
  const tile_scope tiles(static_cast<int>(x.width));
  const int64_t steps = s.block_k() / 32;
  const uint8_t *a[NT], *b[MT];
  for (int i = 0; i < NT; ++i) a[i] = weights[i];

  for (int64_t panel = first; panel < last; panel += NT) {
    zero_sums<NT * MT>();
    for (int64_t block = 0; block < s.blocks(); ++block) {
      for (int i = 0; i < NT; ++i) decoders[i].block(panel + i < last ? panel + i : last - 1, block, weights[i]);
      for (int j = 0; j < MT; ++j) b[j] = x.at(j, block * steps);
      multiply<dot_bf16, NT, MT>(a, bf16_decoder::tile_bytes, b, x.step_bytes(), x.row_bytes(), steps);
    }
    store_sums<NT * MT>(sums);
    for (int i = 0; i < NT && panel + i < last; ++i)
      for (int j = 0; j < MT; ++j) store_outputs(p, sums + (i * MT + j) * 256, panel + i, j);
  }
}

// A slab of decoded weights: panels [first, first + panels), steps [step, step + steps).
struct weight_slab {
  uint8_t* tiles;
  int64_t first, panels, step, steps;
  const uint8_t* at(int64_t panel) const { return tiles + (panel - first) * steps * bf16_decoder::tile_bytes; }
};

// Two panels x MT activation tiles over a slab's steps. `sums` carries them from one slab of K to the next.
template <int MT>
void multiply_slab(const gemm_problem& p, const activation_tiles& x, const weight_slab& slab, int64_t panel,
                   int64_t tile, float* sums) {
  const bool pair = panel + 1 < slab.first + slab.panels;
  const uint8_t* const a[2] = {slab.at(panel), slab.at(pair ? panel + 1 : panel)};
  const uint8_t* b[MT];
  for (int j = 0; j < MT; ++j) b[j] = x.at(tile + j, slab.step);
  if (slab.step == 0)
    zero_sums<2 * MT>();
  else
    load_sums<2 * MT>(sums);
  multiply<dot_bf16, 2, MT>(a, bf16_decoder::tile_bytes, b, x.step_bytes(), x.row_bytes(), slab.steps);
  store_sums<2 * MT>(sums);
  if (slab.step + slab.steps < x.steps) return;
  for (int i = 0; i < 1 + pair; ++i)
    for (int j = 0; j < MT; ++j) store_outputs(p, sums + (i * MT + j) * 256, panel + i, tile + j);
}

bool weight_only_large(const gemm_problem& p, const activation_tiles& x, int64_t first, int64_t last) {
  const packed_shape& s = p.w.shape;
  const int64_t block_steps = s.block_k() / 32, slab_blocks = slab_columns / s.block_k();
  const int64_t pairs = ceil_div(x.tiles, 2), slab_pairs = slab_panels / 2;
  uint8_t* slab_tiles = static_cast<uint8_t*>(
      scratch(scratch_slot::panel, static_cast<size_t>(slab_panels * slab_columns / 32 * bf16_decoder::tile_bytes)));
  float* sums = static_cast<float*>(
      scratch(scratch_slot::sums, static_cast<size_t>(pairs * slab_pairs) * 4 * bf16_decoder::tile_bytes));
  if (!slab_tiles || !sums) return false;
  bf16_decoder decoder;
  decoder.begin(p.w);
  const tile_scope tiles(16);

  for (int64_t panel = first; panel < last; panel += slab_panels) {
    const int64_t panels = last - panel < slab_panels ? last - panel : slab_panels;
    for (int64_t block = 0; block < s.blocks(); block += slab_blocks) {
      const int64_t blocks = s.blocks() - block < slab_blocks ? s.blocks() - block : slab_blocks;
      const weight_slab slab{slab_tiles, panel, panels, block * block_steps, blocks * block_steps};
      for (int64_t i = 0; i < panels; ++i)
        for (int64_t j = 0; j < blocks; ++j)
          decoder.block(panel + i, block + j,
                        slab_tiles + (i * slab.steps + j * block_steps) * bf16_decoder::tile_bytes);
      for (int64_t t = 0; t < x.tiles; t += 2) {
        for (int64_t i = 0; i < panels; i += 2) {
          float* c = sums + (t / 2 * slab_pairs + i / 2) * 1024;
          if (t + 1 < x.tiles)
            multiply_slab<2>(p, x, slab, panel + i, t, c);
          else
            multiply_slab<1>(p, x, slab, panel + i, t, c);
        }
      }
    }
  }
  return true;
}

lowbit_status weight_only_bf16(const gemm_problem& p) {
  const packed_shape& s = p.w.shape;
  activation_tiles x = activation_tiles::of(p.m, s.k_packed / 32);
  x.data = static_cast<uint8_t*>(scratch(scratch_slot::activations, static_cast<size_t>(x.bytes())));
  if (!x.data)
    return fail(LOWBIT_OUT_OF_MEMORY, "no memory for %lld bytes of packed activations",
                static_cast<long long>(x.bytes()));
  parallel_for(p.parallel, x.tiles, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) pack_bf16(p, x, t);
  });
  bool out_of_memory = false;
  const int64_t together = x.tiles == 1 ? 4 : 2;  // panels that share an activation tile
  parallel_for(p.parallel, ceil_div(s.panels, together), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * together, last = end * together < s.panels ? end * together : s.panels;
    if (x.tiles == 1)
      weight_only_small<4, 1>(p, x, first, last);
    else if (x.tiles == 2)
      weight_only_small<2, 2>(p, x, first, last);
    else if (!weight_only_large(p, x, first, last))
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a slab of weights and its sums");
  return LOWBIT_OK;
}

}  // namespace
}  // namespace lowbit::cpu
