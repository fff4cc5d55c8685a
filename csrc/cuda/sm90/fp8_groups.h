// e4m3 x by e2m1 weights whose scales change every 16 or 32 columns: mxfp4, nvfp4.
//
// Promoted: each group's product is scaled and added in fp32, exact but for those additions.
// Rebased (mxfp4): scales are powers of two, and e4m3 has exponents to spare. With base = the row's largest scale less
// 2^6, a weight times its scale is e4m3 times base, exactly, as long as the row's scales span no more than 2^11: 6 *
// 2^6 is below 448, 0.5 * 2^-5 is e4m3's least normal number. So all of K is one sum, and base a factor of the row. A
// strip with a row of wider span is promoted.
#pragma once

#include "cuda/sm90/byte_x.h"
#include "cuda/sm90/group_scales.h"

namespace lowbit::cuda::sm90 {

inline constexpr int rebase_high = 6, rebase_low = -5;
inline constexpr int32_t too_wide = -1000;

// ---- bases: one CTA of 64 threads for each strip, before the product ----

struct rebase_arguments {
  const uint8_t* codes;   // 4-bit fragments
  const uint8_t* scales;  // e8m0 [strips][groups][64]
  int groups, tiles;      // of 32 and of 64 columns
  int32_t* bases;         // [strips][64] exponents; the first is too_wide if any row of the strip is
};

// Are all 32 codes of a row's group zeros (or -0)? Columns 32 h .. of tile g / 2 lie in words 2 h, 2 h + 1 of four
// lanes.
LOWBIT_DEVICE bool group_is_zero(const rebase_arguments& a, int strip, int group, int row) {
  const int half = row % 16 / 8;
  const uint8_t* lanes =
      a.codes + ((int64_t{strip} * a.tiles + group / 2) * 4 + row / 16) * 512 + row % 8 * 64 + group % 2 * 8;
  uint32_t any = 0;
  for (int t = 0; t < 4; ++t) {
    const u32x2 words = global_load<u32x2>(lanes + t * 16);
    any |= words.x | words.y;
  }
  return (any & (half ? 0x70707070u : 0x07070707u)) == 0;
}

inline constexpr int rebase_threads = 64;

LOWBIT_KERNEL(rebase_threads, 1)
void rebase_kernel(const rebase_arguments a) {
  const int row = thread_index(), strip = cta_index();
  const uint8_t* scales = a.scales + int64_t{strip} * a.groups * 64 + row;
  int largest = 0;
  for (int g = 0; g < a.groups; ++g) {
    const int e = global_load<uint8_t>(scales + int64_t{g} * 64);
    if (e > largest && !group_is_zero(a, strip, g, row)) largest = e;
  }
  bool wide = false;
  for (int g = 0; g < a.groups; ++g) {
    const int e = global_load<uint8_t>(scales + int64_t{g} * 64);
    wide |= e < largest - (rebase_high - rebase_low) && !group_is_zero(a, strip, g, row);
  }
  const uint32_t shared = shared_base();
  shared_store<uint32_t>(shared + row * 4, wide);
  sync_threads();
  int32_t base = largest - rebase_high;
  if (row == 0)
    for (int i = 0; i < 64; ++i)
      if (shared_load<uint32_t>(shared + i * 4)) base = too_wide;
  global_store<int32_t>(a.bases + strip * 64 + row, base);
}

// ---- the product ----

struct group_arguments {
  byte_x_arguments common;
  int scale_dtype;
  const int32_t* bases;  // mxfp4, else null
};

// e2m1 times the group's scale as e4m3 times the row's base: one table of 8 magnitudes for each row and group.
struct load_rebased {
  int32_t base[2];
  // `count`: how many groups the stage has; columns behind the last are zeros in x.
  LOWBIT_DEVICE void operator()(uint32_t (&a)[4][4], uint32_t strip, uint32_t scales, int count,
                                const place& at) const {
    uint32_t shift[4][2];  // of the exponent, in each byte
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) LOWBIT_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int e = shared_load<uint8_t>(scales + (i < count ? i : count - 1) * 64 + at.row_in_strip(h)) - base[h];
      const int clamped = e < rebase_low ? rebase_low : e > rebase_high ? rebase_high : e;  // a group of zeros
      shift[i][h] = static_cast<uint32_t>(clamped) * 0x08080808u;
    }
    load_nibbles(a, strip, [&](uint32_t columns, int half, int product) {
      const uint32_t codes = half ? columns >> 4 : columns;
      const uint32_t one = shift[product][half];
      const uint32_t magnitude =
          permute_bytes(0x3c383000u + (one - (one & 0xffu)), 0x4c484440u + one, selectors(codes));
      return magnitude | ((half ? columns : columns << 4) & 0x80808080u);
    });
  }
};

template <class T>
LOWBIT_DEVICE void consume_rebased(const group_arguments& a, uint32_t staging, ring<T>& r, const place& at,
                                   const int32_t* bases) {
  load_rebased load;
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) load.base[h] = global_load<int32_t>(bases + at.row_in_strip(h));
  float sums[T::columns / 2];
  multiply_all<T>(sums, r, a.common.in.steps, [&](uint32_t (&fragments)[4][4], uint32_t strip, int step) {
    load(fragments, strip, ring<T>::scales(strip), stage_groups<T>(a.common.in.axis, step).count, at);
  });
  float base[2];  // 2^(e - 127), in two factors: e may lie outside fp32's exponents
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int e = load.base[h] < 1 ? load.base[h] + 24 : load.base[h];
    base[h] = as_float(static_cast<uint32_t>(e) << 23) * (load.base[h] < 1 ? 0x1p-24f : 1.0f);
  }
  store_outputs<T>(a.common.out, at, staging,
                   [&](int j, int h, int c, int32_t) { return sums[4 * j + 2 * h + c] * base[h]; });
}

// group: 16 or 32 columns. A product of 32 with the other 16 columns' weights zero is one of 16.
template <class T, int group>
LOWBIT_DEVICE void consume_promoted(const group_arguments& a, uint32_t staging, ring<T>& r, const place& at) {
  float sums[T::columns / 2];
  LOWBIT_UNROLL
  for (int i = 0; i < T::columns / 2; ++i) sums[i] = 0;
  const auto add = [&](float (&to)[T::columns / 2], const float (&part)[T::columns / 2], uint32_t strip, int step,
                       int index) {
    const int count = stage_groups<T>(a.common.in.axis, step).count;  // columns behind the last are zeros in x
    const uint32_t line = ring<T>::scales(strip) + (index < count ? index : count - 1) * a.common.in.scale_line;
    float scale[2];
    LOWBIT_UNROLL
    for (int h = 0; h < 2; ++h)
      scale[h] = shared_scale(line, at.row_in_strip(h), a.scale_dtype) * (1 / load_e2m1::factor);
    LOWBIT_UNROLL
    for (int i = 0; i < T::columns / 2; ++i) to[i] = multiply_add(part[i], scale[i / 2 % 2], to[i]);
  };
  multiply_products<T, 32 / group>(sums, r, a.common.in.steps, load_e2m1{}, add);
  store_outputs<T>(a.common.out, at, staging, [&](int j, int h, int c, int32_t) { return sums[4 * j + 2 * h + c]; });
}

template <class T, int group>
LOWBIT_KERNEL(T::threads, 1)
void group_kernel(const LOWBIT_GRID_CONSTANT group_arguments a) {
  run_tiles<T>(a.common.in, [&](uint32_t staging, ring<T>& r, const place& at) {
    if constexpr (group == 32) {
      if (a.bases) {
        const int strip = at.strip < a.common.in.strips ? at.strip : a.common.in.strips - 1;
        const int32_t* bases = a.bases + strip * 64;
        if (global_load<int32_t>(bases) != too_wide) return consume_rebased<T>(a, staging, r, at, bases);
      }
    }
    consume_promoted<T, group>(a, staging, r, at);
  });
}

}  // namespace lowbit::cuda::sm90
