// The skeleton of every sm_90 kernel: one warpgroup brings stages of K into shared memory, the others multiply.
//
//   stage     x: rows of the tile x 128 bytes of K, 128B swizzle     (TMA boxes; zeros outside x)
//             w: strips of the tile x the same columns, as fragments (bulk copy; contiguous in the packed weight),
//                and where fragments are decoded their scales and zero points, [groups of these columns][64]
//   full      completes when a stage's bytes have landed;  empty: when every consumer warpgroup has let it go
//   tiles     output tiles go round the CTAs, all of K each: a sum never depends on m
//
// Schedules of the consumers:
//   together   a tile is as many strips of W as there are warpgroups; they let go of a stage together
//   in turns   ("ping-pong") a tile is one strip, and each of two warpgroups has its own: what one stores hides under
//              what the other multiplies. A named barrier passes the ring on: a full barrier's parity tells a stage
//              only from the one before it in its slot, so nobody waits for a stage while earlier ones are on the way
//   slices     a tile is one strip, K in as many slices as there are warpgroups, one for each; a stage has a lot
//              of every slice. Sums of slices are added in their order. For weights that take long to decode
//
// Weights are A, from registers; x is B: tiles of y^T, so small m means a narrow tile, not a padded one.
#pragma once

#include "cuda/common/wgmma.h"
#include "cuda/sm90/produce.h"

namespace lowbit::cuda::sm90 {

// A consumer warpgroup has read a stage: one thread says so, to every CTA that filled it.
template <class T>
LOWBIT_DEVICE void release(uint32_t empty) {
  const int thread = thread_index() % warpgroup;
  if constexpr (T::cluster > 1) {
    if (thread < T::cluster) mbarrier_arrive_cluster(empty, thread);
  } else {
    if (thread == 0) mbarrier_arrive(empty);
  }
}

// B of the i-th product of a stage: 32 bytes along K, in box i / 4.
template <class T>
LOWBIT_DEVICE uint64_t x_descriptor(uint32_t x, int i) {
  return wgmma_descriptor(x, i / 4 * T::x_box + i % 4 * 32);
}

// Issues the products of a stage: sums (+)= w x.
template <class T, class Sum>
LOWBIT_DEVICE void multiply(Sum (&sums)[T::columns / 2], const uint32_t (&a)[T::products][4], uint32_t x,
                            bool accumulate) {
  wgmma_fence();
  LOWBIT_UNROLL
  for (int i = 0; i < T::products; ++i)
    wgmma<typename T::mma, T::columns>::run(sums, a[i], x_descriptor<T>(x, i), accumulate || i > 0);
  wgmma_commit();
}

template <int Count, class Sum>
LOWBIT_DEVICE void hold(Sum (&sums)[Count]) {
  LOWBIT_UNROLL
  for (int i = 0; i < Count; ++i) wgmma_hold(sums[i]);
}

// This warpgroup's part of a stage.
template <class T>
LOWBIT_DEVICE uint32_t own_strip(const ring<T>& r) {
  return r.strip(T::strips == 1 ? 0 : warp_index() / 4 - 1);
}

// All of K into one set of sums. While a stage is multiplied, the next one's fragments are loaded and decoded into the
// other set of registers. `load(a, strip, step)` makes the fragments of a stage.
template <class T, class Sum, class Load>
LOWBIT_DEVICE void multiply_all(Sum (&sums)[T::columns / 2], ring<T>& r, int steps, const Load& load) {
  if constexpr (T::in_turns) r.wait_turn();
  uint32_t even[T::products][4], odd[T::products][4];
  uint32_t behind = r.empty();  // of the stage that is multiplied and not let go yet
  const auto next = [&](uint32_t (&a)[T::products][4], int step) {
    mbarrier_wait(r.full(), r.parity);
    const uint32_t x = warp_uniform(r.x());  // products take descriptors from uniform registers
    load(a, own_strip(r), step);
    hold(sums);
    multiply<T>(sums, a, x, step > 0);
    if (step > 0) {
      wgmma_wait<1>();
      release<T>(behind);
    }
    behind = r.empty();
    r.advance();
  };
  for (int step = 0; step < steps; step += 2) {
    next(even, step);
    if (step + 1 < steps) next(odd, step + 1);
  }
  if constexpr (T::in_turns) r.pass_turn();  // every stage has come
  wgmma_wait<0>();
  hold(sums);
  release<T>(behind);
}

// K in slices, each as multiply_all() sums it, added up in fp32. True for the warpgroups that have the sums.
template <class T, class Load>
LOWBIT_DEVICE bool multiply_slices(float (&sums)[T::columns / 2], const operands& in, ring<T>& r, uint32_t shared,
                                   const Load& load) {
  const auto slice = [&](float (&to)[T::columns / 2], int first, int steps) {
    multiply_all<T>(to, r, steps,
                    [&](uint32_t (&a)[T::products][4], uint32_t strip, int step) { load(a, strip, first + step); });
  };
  if constexpr (!T::in_slices) {
    LOWBIT_UNROLL
    for (int i = 0; i < T::columns / 2; ++i) sums[i] = 0;
    LOWBIT_UNROLL_N(1)
    for (int first = 0; first < in.steps; first += in.slice) {
      float part[T::columns / 2];
      slice(part, first, in.steps - first < in.slice ? in.steps - first : in.slice);
      LOWBIT_UNROLL
      for (int i = 0; i < T::columns / 2; ++i) sums[i] += part[i];
    }
    return true;
  } else {
    r.lot = warp_index() / 4 - 1;
    const int first = r.lot * in.slice, left = in.steps - first;
    const int steps = left < 0 ? 0 : left < in.slice ? left : in.slice;
    if (steps > 0) slice(sums, first, steps);
    for (int round = steps; round < in.slice; ++round, r.advance()) {  // lots that are not there
      mbarrier_wait(r.full(), r.parity);
      release<T>(r.empty());
    }
    const uint32_t own = shared + T::slices_offset + thread_index() % warpgroup * 4;
    const auto place = [&](int slice, int i) { return own + (slice - 1) * T::slice_sums + i * warpgroup * 4; };
    if (r.lot > 0 && steps > 0) LOWBIT_UNROLL
    for (int i = 0; i < T::columns / 2; ++i) shared_store<float>(place(r.lot, i), sums[i]);
    barrier_sync(T::consumers + 1, T::consumers * warpgroup);
    if (r.lot == 0) {
      LOWBIT_UNROLL
      for (int i = 0; i < T::columns / 2; ++i) sums[i] += 0.0f;  // -0, as above
      LOWBIT_UNROLL_N(1)
      for (int s = 1; s * in.slice < in.steps; ++s) LOWBIT_UNROLL
      for (int i = 0; i < T::columns / 2; ++i) sums[i] += shared_load<float>(place(s, i));
    }
    barrier_sync(T::consumers + 1, T::consumers * warpgroup);  // the next tile's may come
    return r.lot == 0;
  }
}

// K in blocks of `block` stages, each summed by the tensor core alone and then added up in fp32: `prepare(block)`
// before a block's products, `add(sums, part, block)` behind them. The other warpgroups multiply meanwhile.
template <class T, class Part, class Load, class Prepare, class Add>
LOWBIT_DEVICE void multiply_blocks(float (&sums)[T::columns / 2], ring<T>& r, int steps, int block, const Load& load,
                                   const Prepare& prepare, const Add& add) {
  Part part[T::columns / 2];
  uint32_t a[T::products][4];
  int index = 0, inside = 0;  // the block, and its stage
  for (int step = 0; step < steps; ++step, r.advance()) {
    const bool first = inside == 0, last = ++inside == block || step == steps - 1;
    if (first) prepare(index);
    mbarrier_wait(r.full(), r.parity);
    load(a, own_strip(r), step);
    hold(part);
    multiply<T>(part, a, r.x(), !first);
    wgmma_wait<0>();
    hold(part);
    release<T>(r.empty());
    if (!last) continue;
    add(sums, part, index++);
    inside = 0;
  }
}

// Blocks of a product, or of half of one (`halves` 2: 16 columns, the weights of the others zero):
// add(sums, part, strip, step, index of the block in the stage).
template <class T, int halves, class Load, class Add>
LOWBIT_DEVICE void multiply_products(float (&sums)[T::columns / 2], ring<T>& r, int steps, const Load& load,
                                     const Add& add) {
  float part[T::columns / 2];
  uint32_t a[T::products][4];
  for (int step = 0; step < steps; ++step, r.advance()) {
    mbarrier_wait(r.full(), r.parity);
    load(a, own_strip(r), step);
    LOWBIT_UNROLL
    for (int i = 0; i < T::products * halves; ++i) {
      const uint32_t (&whole)[4] = a[i / halves];
      uint32_t fragment[4];
      LOWBIT_UNROLL
      for (int q = 0; q < 4; ++q) fragment[q] = halves == 1 || i % 2 == q / 2 ? whole[q] : 0;
      hold(part);
      wgmma_fence();
      wgmma<typename T::mma, T::columns>::run(part, fragment, x_descriptor<T>(r.x(), i / halves), false);
      wgmma_commit();
      wgmma_wait<0>();
      hold(part);
      add(sums, part, own_strip(r), step, i);
    }
    barrier_sync(warp_index() / 4, warpgroup);  // add() of every warp has read the stage
    release<T>(r.empty());
  }
}

}  // namespace lowbit::cuda::sm90
