// The warpgroup that brings stages of K into shared memory (cuda/sm90/pipeline.h).
#pragma once

#include "cuda/sm90/tile.h"

namespace lowbit::cuda::sm90 {

// Bytes that come for a lot: scales and zero points of a strip, and all.
struct lot_bytes {
  int first_group, scales, zeros, all;
};
template <class T>
LOWBIT_DEVICE lot_bytes lot_size(const operands& a, const group_cursor<T>& groups) {
  lot_bytes b{0, 0, 0, T::x_stage + T::strips * T::strip_stage};
  if (T::scale_stage > 0 && a.scales) {
    const int count = groups.count();
    b.first_group = groups.first();
    b.scales = count * a.scale_line;
    b.zeros = a.zero_points ? count * 64 : 0;
    b.all += T::strips * (b.scales + b.zeros);
  }
  return b;
}

// Starts the copies of a lot: x from row `first_row`, strips from `first_strip`, columns of `step`.
template <class T>
LOWBIT_DEVICE void bring(const operands& a, const ring<T>& r, const lot_bytes& bytes, int first_strip, int first_row,
                         int rank, int step) {
  constexpr int share = T::columns / T::cluster;
  const int row = first_row + rank * share;
  LOWBIT_UNROLL
  for (int b = 0; b < T::stage_k / T::box_k; ++b) {
    const uint32_t x = r.x() + b * T::x_box + rank * share * box_bytes;
    const int column = step * T::stage_k + b * T::box_k;
    if constexpr (T::cluster > 1)
      tensor_copy_multicast(x, a.x, column, row, r.full(), (1u << T::cluster) - 1);
    else
      tensor_copy(x, a.x, column, row, r.full());
  }
  LOWBIT_UNROLL
  for (int s = 0; s < T::strips; ++s) {
    const int wanted = first_strip + s, strip = wanted < a.strips ? wanted : a.strips - 1;  // there is always one
    bulk_copy<cache::streaming>(r.strip(s), a.codes + strip * a.strip_bytes + int64_t{step} * T::strip_stage,
                                T::strip_stage, r.full());
    if (bytes.scales) {
      const int64_t line = int64_t{strip} * a.axis.groups + bytes.first_group;
      const uint32_t to = r.scales(r.strip(s));
      bulk_copy(to, a.scales + line * a.scale_line, bytes.scales, r.full());
      if (bytes.zeros) bulk_copy(to + bytes.scales, a.zero_points + line * 64, bytes.zeros, r.full());
    }
  }
}

// One thread for each lot, of a warp of its own: brings it for every stage of every tile of this CTA. In a cluster each
// CTA brings its share of x to all of them; a cluster's CTAs work on neighbouring blocks of W and the same block of x.
template <class T>
LOWBIT_DEVICE void produce(const operands& a, uint32_t shared, int lot) {
  prefetch_map(a.x);
  ring<T> r(shared);
  r.lot = lot;
  const int first_step = T::in_slices ? lot * a.slice : 0, rounds = T::in_slices ? a.slice : a.steps;
  const int rank = T::cluster > 1 ? cluster_rank() : 0;
  for (int i = cta_index() / T::cluster; i < a.order.count(); i += num_ctas() / T::cluster) {
    int w_block, x_block;
    a.order.at(i, w_block, x_block);
    const int first_strip = (w_block * T::cluster + rank) * T::strips;
    group_cursor<T> groups(a.axis, first_step);
    for (int round = 0; round < rounds; ++round, r.advance(), groups.advance()) {
      const int step = first_step + round;
      mbarrier_wait(r.empty(), r.parity ^ 1);
      if (T::in_slices && step >= a.steps) {  // slices have as many stages, the last ones' lots may be empty
        mbarrier_arrive(r.full());
        continue;
      }
      const lot_bytes bytes = lot_size<T>(a, groups);
      mbarrier_expect_bytes(r.full(), bytes.all);
      bring<T>(a, r, bytes, first_strip, x_block * T::columns, rank, step);
    }
  }
}

}  // namespace lowbit::cuda::sm90
