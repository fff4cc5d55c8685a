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
//   slices     a tile is one strip, K in as many slices as there are warpgroups, one for each; a stage has a lot of
//   every
//              slice. Sums of slices are added in their order. For weights that take long to decode
//
// Weights are A, from registers; x is B: tiles of y^T, so small m means a narrow tile, not a padded one.
#pragma once

#include "cuda/common/barrier.h"
#include "cuda/common/tma.h"
#include "cuda/common/wgmma.h"
#include "cuda/contract.h"

namespace lowbit::cuda::sm90 {

inline constexpr int warpgroup = 128;
inline constexpr int box_bytes = 128;  // of K in one row of x

// What a kernel's tile is. `stage_k` columns a stage are 128 bytes of x, or as many boxes of them as a fragment tile is
// deep; where K is in slices 128 columns, so that what a stage costs by itself is shared by more of them. ScaleBytes:
// the most that the scales and zero points of a strip's stage may take.
enum class schedule { together, in_turns, slices };

template <class Mma, int XBytes, int WBits, int Consumers, int Columns, int Stages, int Cluster, int ScaleBytes = 0,
          schedule Schedule = schedule::together>
struct tile {
  using mma = Mma;
  static constexpr int x_bytes = XBytes;       // of an element of x: 1 or 2
  static constexpr int w_bits = WBits;         // of a packed code
  static constexpr int consumers = Consumers;  // warpgroups, a strip of 64 rows of W each
  static constexpr bool in_turns = Schedule == schedule::in_turns;
  static constexpr bool in_slices = Schedule == schedule::slices;
  static constexpr int strips = in_turns || in_slices ? 1 : consumers;  // of a tile
  static constexpr int lots = in_slices ? consumers : 1;                // of a stage
  static_assert(!in_turns || consumers == 2);
  static constexpr int columns = Columns;  // rows of x
  static constexpr int stages = Stages;
  static constexpr int cluster = Cluster;  // CTAs that share rows of x, each bringing its part to all
  static constexpr int threads = (consumers + 1) * warpgroup;

  static constexpr int tile_k = 256 / w_bits;
  static constexpr int box_k = box_bytes / x_bytes;
  static constexpr int stage_k = in_slices ? fragment_step : box_k < tile_k ? tile_k : box_k;
  static constexpr int mma_k = 32 / x_bytes;         // columns of one product
  static constexpr int products = stage_k / mma_k;   // a stage
  static constexpr int x_box = columns * box_bytes;  // bytes
  static constexpr int x_stage = x_box * (stage_k / box_k);
  static constexpr int strip_stage = 64 * stage_k * w_bits / 8;
  static constexpr int scale_stage = ScaleBytes;
  static constexpr int lot_bytes = (x_stage + strips * (strip_stage + scale_stage) + 1023) / 1024 * 1024;
  static constexpr int stage_bytes = lots * lot_bytes;

  // A warpgroup's y on its way out: up to 32 rows of x at a time, 64 outputs of 2 bytes, padded against bank conflicts.
  // Two such buffers take turns.
  static constexpr int out_columns = columns < 32 ? columns : 32;
  static constexpr int out_pitch = 64 * 2 + 16;
  static constexpr int out_buffer = out_columns * out_pitch;
  // Numbers of the tile's columns, where a thread reads its own 16 bytes at a time: outputs.h, column_numbers.
  static constexpr int number_pitch = columns + 16;  // bytes
  static constexpr int number_bytes = columns > 128 || x_bytes > 1 ? 0 : 4 * number_pitch;
  static constexpr int out_bytes = 2 * out_buffer + 4 * 2 * number_bytes;

  static constexpr int out_offset = stages * stage_bytes;
  // Sums of the slices behind the first, [slice][sum][thread].
  static constexpr int slice_sums = columns / 2 * warpgroup * 4;
  static constexpr int slices_offset = out_offset + (in_slices ? 1 : consumers) * out_bytes;
  static constexpr int barrier_offset = slices_offset + (lots - 1) * slice_sums;
  static constexpr int shared_bytes = barrier_offset + stages * 16;
  static_assert(shared_bytes <= 232448);
  static_assert(columns / cluster % 8 == 0);
};

// A ring of stages: its barriers, and where one is in it.
template <class T>
struct ring {
  uint32_t base;
  int slot = 0;
  uint32_t parity = 0;
  int lot = 0;  // of a stage

  LOWBIT_DEVICE explicit ring(uint32_t shared) : base(shared) {}
  LOWBIT_DEVICE uint32_t x() const { return base + slot * T::stage_bytes + lot * T::lot_bytes; }
  LOWBIT_DEVICE uint32_t strip(int i) const { return x() + T::x_stage + i * (T::strip_stage + T::scale_stage); }
  static LOWBIT_DEVICE uint32_t scales(uint32_t strip) { return strip + T::strip_stage; }
  LOWBIT_DEVICE uint32_t full() const { return base + T::barrier_offset + slot * 16; }
  LOWBIT_DEVICE uint32_t empty() const { return full() + 8; }
  LOWBIT_DEVICE void advance() {
    if (++slot == T::stages) {
      slot = 0;
      parity ^= 1;
    }
  }

  // In turns: which of this CTA's tiles it is, and is there another.
  int turn = 0;
  bool more = false;
  LOWBIT_DEVICE void skip(int steps) {  // another warpgroup's
    const int to = slot + steps;
    slot = to % T::stages;
    parity ^= to / T::stages & 1;
  }
  LOWBIT_DEVICE void wait_turn() const {
    if (turn > 0) barrier_sync(T::consumers + 1 + turn % 2, 2 * warpgroup);
  }
  LOWBIT_DEVICE void pass_turn() const {
    if (more) barrier_arrive(T::consumers + 1 + (turn + 1) % 2, 2 * warpgroup);
  }
};

// The output tiles: bands of 8 blocks of W, within a band all blocks of W for a block of x, so that a wave of CTAs
// shares both in the L2.
struct tile_order {
  int w_blocks, x_blocks;
  static constexpr int band = 8;

  LOWBIT_DEVICE int count() const { return w_blocks * x_blocks; }
  LOWBIT_DEVICE void at(int index, int& w_block, int& x_block) const {
    const int per_band = band * x_blocks, first = index / per_band * band;
    const int height = w_blocks - first < band ? w_blocks - first : band;
    const int inside = index % per_band;
    w_block = first + inside % height;
    x_block = inside / height;
  }
};

// Where the groups of packed columns are.
struct group_axis {
  int span, groups;
  int stage_groups, stage_columns;  // a stage is so many spans and columns
  LOWBIT_DEVICE int of_column(int column) const {
    const int g = column / span;
    return g < groups ? g : groups - 1;
  }
};

// What the stages are cut from.
struct operands {
  tensor_map x;
  const uint8_t* codes;
  int64_t strip_bytes;  // of a whole strip
  int strips;
  int steps;  // stages along K
  int slice;  // of them, a slice: of n and k alone
  tile_order order;
  group_axis axis;
  const uint8_t* scales;       // [strips][groups][64] where the kernel's stages hold them, or null
  const uint8_t* zero_points;  // int8, or null
  int scale_line;              // bytes of 64 scales
};

// The groups that a stage's columns belong to.
template <class T>
struct stage_groups {
  int first, count;
  LOWBIT_DEVICE stage_groups(const group_axis& axis, int step) {
    first = axis.of_column(step * T::stage_k);
    count = axis.of_column(step * T::stage_k + T::stage_k - 1) - first + 1;
  }
};

// The same from stage to stage: one division a tile, not two a stage.
template <class T>
struct group_cursor {
  const group_axis& axis;
  int group, inside;  // the stage's first column is this one of this group

  LOWBIT_DEVICE group_cursor(const group_axis& of, int step)
      : axis(of), group(step * T::stage_k / of.span), inside(step * T::stage_k - group * of.span) {}
  LOWBIT_DEVICE void advance() {
    group += axis.stage_groups;
    inside += axis.stage_columns;
    if (inside < axis.span) return;
    inside -= axis.span;
    ++group;
  }
  LOWBIT_DEVICE bool one() const { return inside + T::stage_k <= axis.span; }
  // Columns behind the last group count as its own.
  LOWBIT_DEVICE int first() const { return group < axis.groups ? group : axis.groups - 1; }
  LOWBIT_DEVICE int count() const {
    if (one()) return 1;
    const int more = (inside + T::stage_k - 1) / axis.span, left = axis.groups - 1 - first();
    return 1 + (more < left ? more : left);
  }
};

template <class T>
LOWBIT_DEVICE void init_barriers(uint32_t shared) {
  if (thread_index() == 0) {
    ring<T> r(shared);
    for (int i = 0; i < T::stages; ++i, r.advance()) {
      mbarrier_init(r.full(), T::lots);
      mbarrier_init(r.empty(), T::strips * T::lots * T::cluster);
    }
    fence_mbarrier_init();
  }
  if constexpr (T::cluster > 1)
    cluster_sync();
  else
    sync_threads();
}

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
