// weight_only on AMX bf16: W is decoded to bf16 A tiles, x are the B tiles, sums come out as [output][row of x].
//
//   m <= 32   2 panels x 1 or 2 activation tiles   decode a block, multiply it; sums never leave the tiles
//   m >  32   2 panels x 2                         a slab of panels and K is decoded into L2 and serves all of m; sums
//                                                  wait in memory between slabs: K keeps its order
#pragma once

#include "cpu/amx/activations.h"
#include "cpu/amx/decode.h"
#include "cpu/amx/outputs.h"
#include "cpu/amx/tile.h"
#include "cpu/amx/tuning.h"

namespace lowbit::cpu {
namespace {

// Two panels at a time. A block is multiplied while the next one is decoded: the tile loads find their bytes in L1, and
// the tiles work beside the vector units.
template <int MT>
void weight_only_small(const gemm_problem& p, const activation_tiles& x, int64_t first, int64_t last) {
  constexpr int NT = 2;
  constexpr int64_t most_tiles = 4;  // of a block
  const packed_shape& s = p.w.shape;
  alignas(64) uint8_t weights[2][NT][most_tiles * bf16_decoder::tile_bytes];
  alignas(64) float sums[NT * MT * 256];
  bf16_decoder decoders[NT];
  for (bf16_decoder& d : decoders) d.begin(p.w);
  const tile_scope tiles(static_cast<int>(x.width));
  const int64_t steps = s.block_k / 32;
  const uint8_t *a[NT], *b[MT];

  for (int64_t panel = first; panel < last; panel += NT) {
    zero_sums<NT * MT>();
    for (int64_t block = 0; block <= s.blocks; ++block) {
      if (block < s.blocks)
        for (int i = 0; i < NT; ++i)
          decoders[i].block(panel + i < last ? panel + i : last - 1, block, weights[block % 2][i]);
      if (block > 0) {
        for (int i = 0; i < NT; ++i) a[i] = weights[(block - 1) % 2][i];
        for (int j = 0; j < MT; ++j) b[j] = x.at(j, (block - 1) * steps);
        multiply<dot_bf16, NT, MT>(a, bf16_decoder::tile_bytes, b, x.step_bytes(), x.row_bytes(), steps);
      }
    }
    store_sums<NT * MT>(sums);
    for (int j = 0; j < MT; ++j)
      store_outputs(p, sums + j * 256, sums + (MT + j) * 256, panel, j, _mm512_set1_ps(p.w.global_scale));
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
  if (slab.step + slab.steps < x.steps) {
    store_sums<2 * MT>(sums);
    return;
  }
  alignas(64) float last_sums[2 * MT * 256];  // in L1: the ones that wait are not written again
  store_sums<2 * MT>(last_sums);
  for (int j = 0; j < MT; ++j)
    store_outputs(p, last_sums + j * 256, last_sums + (MT + j) * 256, panel, tile + j, _mm512_set1_ps(p.w.global_scale));
}

bool weight_only_large(const gemm_problem& p, const activation_tiles& x, int64_t first, int64_t last) {
  const packed_shape& s = p.w.shape;
  const int64_t block_steps = s.block_k / 32, slab_blocks = slab_steps / block_steps, slab_pairs = slab_panels / 2;
  uint8_t* decoded = static_cast<uint8_t*>(
      scratch(scratch_slot::panel, static_cast<size_t>(slab_panels * slab_steps * bf16_decoder::tile_bytes)));
  float* sums = static_cast<float*>(
      scratch(scratch_slot::sums, static_cast<size_t>(slab_panels * slab_tiles * bf16_decoder::tile_bytes)));
  if (!decoded || !sums) return false;
  bf16_decoder decoder;
  decoder.begin(p.w);
  const tile_scope tiles(16);

  for (int64_t tile = 0; tile < x.tiles; tile += slab_tiles) {
    const int64_t last_tile = tile + slab_tiles < x.tiles ? tile + slab_tiles : x.tiles;
    for (int64_t panel = first; panel < last; panel += slab_panels) {
      const int64_t panels = last - panel < slab_panels ? last - panel : slab_panels;
      for (int64_t block = 0; block < s.blocks; block += slab_blocks) {
        const int64_t blocks = s.blocks - block < slab_blocks ? s.blocks - block : slab_blocks;
        const weight_slab slab{decoded, panel, panels, block * block_steps, blocks * block_steps};
        for (int64_t i = 0; i < panels; ++i)
          for (int64_t j = 0; j < blocks; ++j)
            decoder.block(panel + i, block + j,
                          decoded + (i * slab.steps + j * block_steps) * bf16_decoder::tile_bytes);
        for (int64_t t = tile; t < last_tile; t += 2) {
          for (int64_t i = 0; i < panels; i += 2) {
            float* c = sums + ((t - tile) / 2 * slab_pairs + i / 2) * 1024;
            if (t + 1 < last_tile)
              multiply_slab<2>(p, x, slab, panel + i, t, c);
            else
              multiply_slab<1>(p, x, slab, panel + i, t, c);
          }
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
  parallel_for(p.parallel, ceil_div(s.panels, 2), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * 2, last = end * 2 < s.panels ? end * 2 : s.panels;
    if (x.tiles == 1)
      weight_only_small<1>(p, x, first, last);
    else if (x.tiles == 2)
      weight_only_small<2>(p, x, first, last);
    else if (!weight_only_large(p, x, first, last))
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a slab of weights and its sums");
  return LOWBIT_OK;
}

}  // namespace
}  // namespace lowbit::cpu
