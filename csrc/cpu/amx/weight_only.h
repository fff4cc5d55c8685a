// weight_only on AMX bf16: W is decoded to bf16 A tiles, x are the B tiles, sums come out as [output][row of x].
//
//   m <= 64   4 panels x 1 activation tile, 2 x 2, 1 x 3 or 1 x 4: a block is decoded while the one before is
//             multiplied, tile by tile; sums never leave the tiles
//   more      2 panels x 2: a slab of K of two panels is decoded into L1 and serves 512 rows of x; sums wait in L2
//             between slabs: K keeps its order
#pragma once

#include "cpu/amx/activations.h"
#include "cpu/amx/decode.h"
#include "cpu/amx/outputs.h"
#include "cpu/amx/tile.h"
#include "cpu/amx/tuning.h"

namespace lowbit::cpu {
namespace {

// One step of one panel into the sums from tile C on.
template <int C, int MT>
inline void multiply_step(const uint8_t* weights, const activation_tiles& x, int64_t step) {
  constexpr int a = weight_tile + C / MT % 2;
  tile_load<a>(weights, 64);
  for_tiles<MT>([&](auto j) {
    constexpr int b = activation_tile + j.value % 2;
    tile_load<b>(x.at(j.value, step), x.row_bytes());
    dot_bf16::step<C + j.value, a, b>();
  });
}

// NT panels side by side, as many streams of packed bytes. Tile q of a block is multiplied before tile q of the next
// one takes its place: what is loaded was stored a block ago, and no tile since then to the same offset in a page (tile
// loads wait for both kinds of stores to leave the store buffer).
template <int NT, int MT>
void weight_only_few(const gemm_problem& p, const activation_tiles& x, int64_t first, int64_t last) {
  constexpr int together = NT > 2 ? NT : 2;  // panels whose outputs are stored at a time: y's lines are of two
  const packed_shape& s = p.w.shape;
  const int64_t steps = s.block_k / 32;
  alignas(4096) uint8_t weights[4 * bf16_decoder::tile_bytes];
  alignas(64) float sums[together * MT * 256];
  bf16_decoder decoders[NT];
  for (bf16_decoder& d : decoders) d.begin(p.w, small_prefetch_bytes, NT == 1 ? 2 : 1);
  const tile_scope tiles(static_cast<int>(x.width));

  const auto multiply_panels = [&](int64_t panel) {
    const auto prepare = [&](int i, int64_t block) {
      return decoders[i].prepare(panel + i < last ? panel + i : last - 1, block);
    };
    zero_sums<NT * MT>();
    bf16_decoder::block current = prepare(0, 0), next = current;
    for (int64_t block = 0; block <= s.blocks; ++block) {
      for_tiles<NT>([&](auto i) {  // multiplies the block decoded before, decodes `block` of panel i
        constexpr int before = (i.value + NT - 1) % NT;
        const int64_t block_before = i.value == 0 ? block - 1 : block;
        if (block == s.blocks && i.value > 0) return;
        for (int q = 0; q < steps; ++q) {
          uint8_t* tile = weights + q * bf16_decoder::tile_bytes;
          if (block_before >= 0) multiply_step<before * MT, MT>(tile, x, block_before * steps + q);
          if (block == s.blocks) continue;
          if (q == steps / 2 && i.value + 1 < NT) next = prepare(i.value + 1, block);
          if (q == steps / 2 && i.value + 1 == NT && block + 1 < s.blocks) next = prepare(0, block + 1);
          decoders[i.value].tile(current, q, tile);
        }
        current = next;
      });
    }
  };
  for (int64_t panel = first; panel < last; panel += together) {
    for (int i = 0; i < together && panel + i < last; i += NT) {
      multiply_panels(panel + i);
      store_sums<NT * MT>(sums + i * MT * 256);
    }
    for (int i = 0; i < together && panel + i < last; i += 2)
      for (int j = 0; j < MT; ++j)
        store_outputs(p, sums + (i * MT + j) * 256, sums + ((i + 1) * MT + j) * 256, panel + i, j,
                      _mm512_set1_ps(p.w.global_scale));
  }
}

// Two panels, decoded for the steps [step, step + steps): 16 KB, which stay in L1 while all of x passes.
struct weight_pair {
  const uint8_t* tiles[2];
  int64_t panel, step, steps;
  int64_t number, pairs;  // of those that share the sums' memory
};

// Two panels x MT activation tiles over a slab's steps. `sums` carries them from one slab of K to the next.
template <int MT>
void multiply_pair(const gemm_problem& p, const activation_tiles& x, const weight_pair& w, int64_t tile, float* sums) {
  const uint8_t* b[MT];
  for (int j = 0; j < MT; ++j) b[j] = x.at(tile + j, w.step);
  if (w.step == 0)
    zero_sums<2 * MT>();
  else
    load_sums<2 * MT>(sums);
  multiply<dot_bf16, 0, 2, MT>(w.tiles, b, x.step_bytes(), x.row_bytes(), w.steps,
                               x.next_run(tile, MT, w.step, w.number, w.pairs));
  if (w.step + w.steps < x.steps) {
    store_sums<2 * MT>(sums);
    return;
  }
  alignas(64) float last_sums[2 * MT * 256];  // in L1: the ones that wait are not written again
  store_sums<2 * MT>(last_sums);
  for (int j = 0; j < MT; ++j)
    store_outputs(p, last_sums + j * 256, last_sums + (MT + j) * 256, w.panel, tile + j,
                  _mm512_set1_ps(p.w.global_scale));
}

bool weight_only_many(const gemm_problem& p, const activation_tiles& x, int64_t first, int64_t last) {
  const packed_shape& s = p.w.shape;
  const int64_t block_steps = s.block_k / 32, slab_blocks = slab_steps / block_steps;
  const int64_t m_tiles = x.tiles < slab_tiles ? x.tiles : slab_tiles, pairs = waiting_sums / (2 * m_tiles);
  float* sums = static_cast<float*>(
      scratch(scratch_slot::sums, static_cast<size_t>(pairs * round_up(m_tiles, 2) * 2 * bf16_decoder::tile_bytes)));
  if (!sums) return false;
  alignas(64) uint8_t decoded[2][slab_steps * bf16_decoder::tile_bytes];
  bf16_decoder decoder;
  decoder.begin(p.w, slab_blocks * panel_rows * line_bytes, 1);  // the panel's next slab
  const tile_scope tiles(16);

  for (int64_t tile = 0; tile < x.tiles; tile += slab_tiles) {
    const int64_t last_tile = tile + slab_tiles < x.tiles ? tile + slab_tiles : x.tiles;
    for (int64_t panels = first; panels < last; panels += 2 * pairs) {
      const int64_t last_panel = panels + 2 * pairs < last ? panels + 2 * pairs : last;
      for (int64_t block = 0; block < s.blocks; block += slab_blocks) {
        const int64_t blocks = s.blocks - block < slab_blocks ? s.blocks - block : slab_blocks;
        float* c = sums;
        for (int64_t panel = panels; panel < last_panel; panel += 2) {
          const bool pair = panel + 1 < last_panel;
          for (int i = 0; i < 1 + pair; ++i)
            for (int64_t j = 0; j < blocks; ++j)
              decoder.decode(panel + i, block + j, decoded[i] + j * block_steps * bf16_decoder::tile_bytes);
          const weight_pair w{{decoded[0], decoded[pair]}, panel,
                              block * block_steps,         blocks * block_steps,
                              (panel - panels) / 2,        ceil_div(last_panel - panels, 2)};
          for (int64_t t = tile; t < last_tile; t += 2, c += 1024) {
            if (t + 1 < last_tile)
              multiply_pair<2>(p, x, w, t, c);
            else
              multiply_pair<1>(p, x, w, t, c);
          }
        }
      }
    }
  }
  return true;
}

lowbit_status weight_only_bf16(const gemm_problem& p) {
  const packed_shape& s = p.w.shape;
  activation_tiles x = activation_tiles::of(p.m, s.k_packed / 32, slab_steps);
  x.data = static_cast<uint8_t*>(scratch(scratch_slot::activations, static_cast<size_t>(x.bytes())));
  if (!x.data)
    return fail(LOWBIT_OUT_OF_MEMORY, "no memory for %lld bytes of packed activations",
                static_cast<long long>(x.bytes()));
  parallel_for(p.parallel, x.tiles, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) pack_bf16(p, x, t);
  });
  bool out_of_memory = false;
  const int64_t together = x.tiles == 1 ? 4 : 2;
  parallel_for(p.parallel, ceil_div(s.panels, together), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * together, last = end * together < s.panels ? end * together : s.panels;
    if (x.tiles == 1)
      weight_only_few<4, 1>(p, x, first, last);
    else if (x.tiles == 2)
      weight_only_few<2, 2>(p, x, first, last);
    else if (x.tiles == 3 && x.bytes() <= small_bytes)
      weight_only_few<1, 3>(p, x, first, last);
    else if (x.tiles == 4 && x.bytes() <= small_bytes)
      weight_only_few<1, 4>(p, x, first, last);
    else if (!weight_only_many(p, x, first, last))
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for the sums of a slab");
  return LOWBIT_OK;
}

}  // namespace
}  // namespace lowbit::cpu
