// What a kernel of sm_90 works on: the geometry of its tile and of a stage in shared memory, the ring that stages go
// round, the order of output tiles, and the operands that stages are cut from.
#pragma once

#include "cuda/common/barrier.h"
#include "cuda/common/tma.h"
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

}  // namespace lowbit::cuda::sm90
