// integer on AMX int8: weights are A tiles (8-bit codes straight from the packed bytes, 4-bit ones decoded), quantized
// rows the B tiles, exact int32 sums [output][row of x] of one segment of K, scaled into fp32 sums segment by segment.
//
//   m <= 4    weights that need decoding meet AVX512-VNNI instead: the sums are the same bits
//   m <= 64   4 panels x 1 activation tile, 2 x 2, 1 x 3 or 1 x 4: sums stay in L1
//   more      2 panels x 2: 256 rows of x, 4096 columns of them, stay in L2; two panels at a time pass, decoded once
#pragma once

#include "cpu/amx/integer_few.h"
#include "cpu/amx/integer_many.h"

namespace lowbit::cpu::avx512_vnni {
kernel integer;
}

namespace lowbit::cpu {
namespace {

lowbit_status integer(const gemm_problem& p) {
  const integer_axis axis(p.w.shape);
  if (p.m <= vector_rows && integer_weights(p, axis).decoded()) return avx512_vnni::integer(p);
  quantized_rows x{};
  x.tiles = activation_tiles::of(p.m, axis.steps, integer_slab_steps);
  const int64_t padded_m = x.tiles.tiles * 16;
  const size_t bytes = static_cast<size_t>(x.tiles.bytes() + padded_m * 4 * (2 + axis.segments()));
  uint8_t* memory = static_cast<uint8_t*>(scratch(scratch_slot::activations, bytes));
  if (!memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for %zu bytes of quantized activations", bytes);
  x.tiles.data = memory;
  x.scale = reinterpret_cast<float*>(memory + x.tiles.bytes());
  x.zero_point = reinterpret_cast<int32_t*>(x.scale + padded_m);
  x.sums = x.zero_point + padded_m;
  parallel_for(p.parallel, x.tiles.tiles, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) quantize_tile(p, axis, x, t);
  });
  bool out_of_memory = false;
  const int64_t together = x.tiles.tiles == 1 ? 4 : 2;
  parallel_for(p.parallel, ceil_div(p.w.shape.panels, together), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * together,
                  last = end * together < p.w.shape.panels ? end * together : p.w.shape.panels;
    if (x.tiles.tiles == 1)
      integer_few<4, 1>(p, axis, x, first, last);
    else if (x.tiles.tiles == 2)
      integer_few<2, 2>(p, axis, x, first, last);
    else if (x.tiles.tiles == 3 && x.tiles.bytes() <= small_bytes)
      integer_few<1, 3>(p, axis, x, first, last);
    else if (x.tiles.tiles == 4 && x.tiles.bytes() <= small_bytes)
      integer_few<1, 4>(p, axis, x, first, last);
    else if (!integer_many(p, axis, x).run(first, last))
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
  });
  if (out_of_memory) return fail(LOWBIT_OUT_OF_MEMORY, "no memory for a slab of weights and its sums");
  return LOWBIT_OK;
}

}  // namespace
}  // namespace lowbit::cpu
