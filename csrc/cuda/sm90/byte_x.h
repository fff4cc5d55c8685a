// fp8 and integer on sm_90: 8-bit x, and weights that are 8-bit fragments or become them in registers.
#pragma once

#include "cuda/sm90/outputs.h"

namespace lowbit::cuda::sm90 {

struct byte_x_arguments {
  operands in;
  outputs out;
  const int32_t* code_sums;  // integer: W's column sums [strips][groups][64]
  // blocks of K with scales of their own: x_scale[m * x_scale_row + block * x_scale_block], w_scale[strips][groups][64]
  int block;             // stages
  int groups;            // of W
  int group;             // stages of one
  const float* x_scale;  // or null: W's alone
  int64_t x_scale_row, x_scale_block;
  const void* w_scale;
  int w_scale_dtype;
  bool one_w_scale;  // for all rows of a strip
};

// 8-bit codes: a stage of a strip is 4 tiles of 16 x 32 for each warp, fragments as they are.
struct load_bytes {
  static constexpr float factor = 1;  // of W in the fragments
  LOWBIT_DEVICE void operator()(uint32_t (&a)[4][4], uint32_t strip, int) const {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const u32x4 v = shared_load<u32x4>(strip + i * 2048 + warp_index() % 4 * 512 + lane_index() * 16);
      a[i][0] = v.x;
      a[i][1] = v.y;
      a[i][2] = v.z;
      a[i][3] = v.w;
    }
  }
};

// 4-bit codes: 2 tiles of 16 x 64 for each warp. Lanes hold columns 2 t, + 1, 2 t + 8, + 9 of each 16, products of 32
// want 4 t .. 4 t + 3: those are in two neighbouring lanes' 16 bytes, so each lane reads them there. One byte has a
// column of rows g (low nibble) and g + 8 (high); `convert(byte columns, row half)` makes four 8-bit weights of them.
template <class Convert>
LOWBIT_DEVICE void load_nibbles(uint32_t (&a)[4][4], uint32_t strip, const Convert& convert) {
  const int lane = lane_index(), t = lane % 4;
  const uint32_t source = strip + warp_index() % 4 * 512 + (lane - t + t % 2 * 2) * 16;
  const uint32_t select = t < 2 ? 0x6420u : 0x7531u;  // columns below 8 are in the even bytes
  LOWBIT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const u32x4 u = shared_load<u32x4>(source + i * 2048), v = shared_load<u32x4>(source + i * 2048 + 16);
    const uint32_t first[4] = {u.x, u.y, u.z, u.w}, second[4] = {v.x, v.y, v.z, v.w};
    LOWBIT_UNROLL
    for (int j = 0; j < 4; ++j) {  // 16 columns: half of product 2 i + j / 2
      const uint32_t columns = permute_bytes(first[j], second[j], select);
      LOWBIT_UNROLL
      for (int half = 0; half < 2; ++half) a[2 * i + j / 2][j % 2 * 2 + half] = convert(columns, half, 2 * i + j / 2);
    }
  }
}

// int4 as int8 of 16 times the value: the nibble less 8, in the high half of the byte. Exact, and so is float(sum)
// / 16.
struct load_int4 {
  static constexpr float factor = 16;
  LOWBIT_DEVICE void operator()(uint32_t (&a)[4][4], uint32_t strip, int) const {
    load_nibbles(a, strip, [](uint32_t columns, int half, int) {
      return ((half ? columns : columns << 4) & 0xf0f0f0f0u) ^ 0x80808080u;
    });
  }
};

// e2m1 as e4m3 of 2^-6 the value: sign, two bits of exponent and one of mantissa move to their places; denormals are
// right, too.
struct load_e2m1 {
  static constexpr float factor = 0x1p-6f;
  LOWBIT_DEVICE void operator()(uint32_t (&a)[4][4], uint32_t strip, int) const {
    load_nibbles(a, strip, [](uint32_t columns, int half, int) {
      const uint32_t magnitude = (half ? columns >> 2 : columns << 2) & 0x1c1c1c1cu;
      return magnitude | ((half ? columns : columns << 4) & 0x80808080u);
    });
  }
};

// Four selectors of permute_bytes from the low three bits of four bytes.
LOWBIT_DEVICE uint32_t selectors(uint32_t bytes) {
  const uint32_t low = bytes & 0x07070707u;
  return permute_bytes(low | low >> 4, 0, 0x4420u);
}

// int4 as e4m3, which has every integer up to 16: 0 .. 7 for codes 8 .. 15, -8 .. -1 for codes 0 .. 7.
struct load_int4_e4m3 {
  static constexpr float factor = 1;
  LOWBIT_DEVICE void operator()(uint32_t (&a)[4][4], uint32_t strip, int) const {
    load_nibbles(a, strip, [](uint32_t columns, int half, int) {
      const uint32_t codes = half ? columns >> 4 : columns;
      const uint32_t select = selectors(codes);
      const uint32_t positive = permute_bytes(0x44403800u, 0x4e4c4a48u, select);
      const uint32_t negative = permute_bytes(0xcaccced0u, 0xb8c0c4c8u, select);
      const uint32_t upper = (codes >> 3 & 0x01010101u) * 255u;
      return (positive & upper) | (negative & ~upper);
    });
  }
};

// All of K in one sum: fp8 "fast" and integer without groups.
template <class T, class Load, class Sum>
LOWBIT_DEVICE void consume_whole(const byte_x_arguments& a, uint32_t staging, ring<T>& r, const place& at) {
  Sum sums[T::columns / 2];
  multiply_all<T>(sums, r, a.in.steps, Load{});

  int32_t code_sum[2] = {0, 0};
  if (a.out.x_zero) LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h)
    if (at.row(h) < a.out.n)
      code_sum[h] = global_load<int32_t>(a.code_sums + at.row(h)) * static_cast<int32_t>(Load::factor);
  store_outputs<T>(a.out, at, staging, [&](int j, int h, int c, int32_t x_zero) {
    Sum sum = sums[4 * j + 2 * h + c];
    if constexpr (__is_same(Sum, int32_t)) sum -= x_zero * code_sum[h];
    return static_cast<float>(sum) * (1 / Load::factor);
  });
}

// K in blocks, scaled and added in fp32: fp8 "promoted", fp8 with blocks of 1 x 128 and 128 x 128, integer with groups.
template <class T, class Load, class Part>
LOWBIT_DEVICE void consume_blocks(const byte_x_arguments& a, uint32_t staging, ring<T>& r, const place& at) {
  constexpr bool integer = __is_same(Part, int32_t);
  using numbers = column_numbers<T>;
  float sums[T::columns / 2];
  LOWBIT_UNROLL
  for (int i = 0; i < T::columns / 2; ++i) sums[i] = 0;

  // Scales come from memory while the block before theirs is multiplied. Those of x, or its zero points, go through
  // shared memory: a thread wants a quarter of the tile's columns.
  const numbers columns(staging);
  float x_next[numbers::loads], w_next[2] = {1, 1}, w_scale[2];
  int32_t code_sum_next[2] = {0, 0}, code_sum[2];
  const int strip = at.strip < a.in.strips ? at.strip : a.in.strips - 1;
  const int first_column = at.first_column - lane_index() % 4 * 2;
  int group = 0, left = a.group;  // of the block that is fetched: stages of its group that are to come
  const auto fetch = [&](int block) {
    if (a.w_scale) {
      const int64_t i = (int64_t{strip} * a.groups + group) * 64;
      LOWBIT_UNROLL
      for (int h = 0; h < 2; ++h) {
        w_next[h] = load_float(a.w_scale, i + at.row_in_strip(h), a.w_scale_dtype);
        if (integer && a.out.x_zero)
          code_sum_next[h] =
              global_load<int32_t>(a.code_sums + i + at.row_in_strip(h)) * static_cast<int32_t>(Load::factor);
      }
      left -= a.block;
      if (left <= 0) ++group, left = a.group;
    }
    if (!integer && a.x_scale)
      numbers::fetch(x_next, [&](int column) {
        return global_load<float>(a.x_scale + inside_x(a.out, first_column + column) * a.x_scale_row +
                                  block * a.x_scale_block);
      });
  };
  const int blocks = (a.in.steps + a.block - 1) / a.block;
  const auto prepare = [&](int block) {
    LOWBIT_UNROLL
    for (int h = 0; h < 2; ++h) w_scale[h] = w_next[h], code_sum[h] = code_sum_next[h];
    if (!integer && a.x_scale) columns.store(block % 2, x_next);
    if (block + 1 < blocks) fetch(block + 1);
  };
  sync_warp();  // the numbers of the tile before have been read
  fetch(0);
  if (integer && a.out.x_zero) {
    int32_t zero[numbers::loads];
    numbers::fetch(zero, [&](int column) {
      return global_load<int32_t>(a.out.x_zero + (a.out.one_column_scale ? 0 : inside_x(a.out, first_column + column)));
    });
    columns.store(0, zero);
  }

  const auto add = [&](float (&to)[T::columns / 2], const Part(&part)[T::columns / 2], int block) {
    // each(j, columns' numbers): four sums of columns 8 j + 2 t, + 1
    const auto each = [&](bool numbered, int buffer, const auto& four) {
      LOWBIT_UNROLL
      for (int j = 0; j < T::columns / 8; j += 2) {
        u32x4 n{0, 0, 0, 0};
        if (numbered) n = columns.load(buffer, j);
        four(4 * j, n.x, n.y);
        four(4 * j + 4, n.z, n.w);
      }
    };
    constexpr float unit = 1 / Load::factor;
    if constexpr (integer) {
      each(a.out.x_zero != nullptr, 0, [&](int i, uint32_t zero0, uint32_t zero1) {
        LOWBIT_UNROLL
        for (int q = 0; q < 4; ++q) {
          const auto zero = static_cast<int32_t>(q % 2 ? zero1 : zero0);
          to[i + q] =
              multiply_add(static_cast<float>(part[i + q] - zero * code_sum[q / 2]) * unit, w_scale[q / 2], to[i + q]);
        }
      });
    } else if (a.x_scale && a.one_w_scale) {
      each(true, block % 2, [&](int i, uint32_t x0, uint32_t x1) {
        const float scale[2] = {w_scale[0] * as_float(x0), w_scale[0] * as_float(x1)};
        LOWBIT_UNROLL
        for (int q = 0; q < 4; ++q) to[i + q] = multiply_add(part[i + q] * unit, scale[q % 2], to[i + q]);
      });
    } else if (a.x_scale) {
      each(true, block % 2, [&](int i, uint32_t x0, uint32_t x1) {
        const float x[2] = {as_float(x0), as_float(x1)};
        LOWBIT_UNROLL
        for (int q = 0; q < 4; ++q) to[i + q] = multiply_add(part[i + q] * unit, w_scale[q / 2] * x[q % 2], to[i + q]);
      });
    } else if (a.w_scale) {
      LOWBIT_UNROLL
      for (int i = 0; i < T::columns / 2; ++i) to[i] = multiply_add(part[i] * unit, w_scale[i / 2 % 2], to[i]);
    } else {
      LOWBIT_UNROLL
      for (int i = 0; i < T::columns / 2; ++i) to[i] += part[i] * unit;
    }
  };
  multiply_blocks<T, Part>(sums, r, a.in.steps, a.block, Load{}, prepare, add);
  outputs out = a.out;
  out.x_zero = nullptr;  // their part is in the sums
  store_outputs<T>(out, at, staging, [&](int j, int h, int c, int32_t) { return sums[4 * j + 2 * h + c]; });
}

template <class T, class Load, class Sum, bool blocks>
LOWBIT_KERNEL(T::threads, 1)
void byte_x_kernel(const LOWBIT_GRID_CONSTANT byte_x_arguments a) {
  run_tiles<T>(a.in, [&](uint32_t staging, ring<T>& r, const place& at) {
    if constexpr (blocks)
      consume_blocks<T, Load, Sum>(a, staging, r, at);
    else
      consume_whole<T, Load, Sum>(a, staging, r, at);
  });
}

}  // namespace lowbit::cuda::sm90
