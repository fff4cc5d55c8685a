// weight_only on sm_90: 16-bit x, weights decoded to it in registers while the stage before is multiplied.
#pragma once

#include "cuda/generic/decode.h"
#include "cuda/sm90/group_scales.h"

namespace lowbit::cuda::sm90 {

// int4 to bf16 with two shifts a word fewer than integer_codes: a nibble alone in a half is a denormal, linear in the
// code as far as bit 7, where the exponent begins. Nibbles of row g count in 2^-133, those of row g + 8, four bits
// higher, in 2^-129. fma with 2^127 makes integers of them, exact, in `unit`; the scale is as much larger.
struct int4_to_bf16 {
  static constexpr int bits = 4;
  static constexpr bool offset = true, exponent_moved = false;
  template <class T>
  static constexpr float bias = 0;
  static constexpr float unit(int h) { return h ? 0x1p-2f : 0x1p-6f; }

  static LOWBIT_DEVICE void decode(uint32_t (&a)[4], const u32x4& w, int i, const row_scales& s) {
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
    LOWBIT_UNROLL
    for (int r = 0; r < 4; ++r) {
      const uint32_t raw = logic3<lut_and>(words[i] >> (r / 2 * 8), r % 2 ? 0x00f000f0u : 0x000f000fu, 0);
      a[r] = mul2<bf16_t>(fma2<bf16_t>(raw, 0x7f007f00u, s.offset[r % 2]), s.scale[r % 2]);
    }
  }
};

// Of the integers that codes of row g + 8 h become before they are scaled: one, but for int4_to_bf16.
template <class Codes>
constexpr float unit_of(int h) {
  if constexpr (__is_same(Codes, int4_to_bf16)) return Codes::unit(h);
  return 1;
}

// A stage has at most stage_k / 16 groups: scales of 4 bytes and zero points of 1.
template <int StageK>
inline constexpr int stage_scale_bytes = StageK / 16 * 64 * 5;

template <class X, class Codes, int Consumers, int Columns, int Stages, int Cluster, schedule Schedule>
struct weight_only_tile
    : tile<X, 2, Codes::bits, Consumers, Columns, Stages, Cluster,
           stage_scale_bytes<Codes::bits == 2 || Schedule == schedule::slices ? 128 : 64>, Schedule> {
  using x_type = X;
  using codes = Codes;
};

struct weight_only_arguments {
  operands in;
  outputs out;
  decode_constants constants;
  int scale_dtype;
  float scale_factor[2];  // of every scale of rows g and g + 8: the powers of two that raw values owe, as far as
                          // scales pay them
  float bias;             // what raw values are too large by, the format's offset included
  const int8_t* zero_points;
};

// Where a lane finds its part of a stage.
template <class T>
struct lane_place {
  int codes, row;  // bytes from the strip's first; the row of the strip

  LOWBIT_DEVICE lane_place() {
    const int warp = warp_index() % 4, lane = lane_index(), t = lane % 4;
    codes = warp * 512 + (T::w_bits == 8 ? lane - t + t / 2 : lane) * 16;
    row = warp * 16 + lane / 4;
  }
};

template <class T>
LOWBIT_DEVICE uint32_t offset_of(const weight_only_arguments& a, int h, float zero) {
  const float offset = (-a.bias - zero) * unit_of<typename T::codes>(h);
  return pack2<typename T::x_type>(offset, offset);
}
template <class T>
LOWBIT_DEVICE uint32_t scale_of(const weight_only_arguments& a, int h, float scale) {
  return pack2<typename T::x_type>(scale * a.scale_factor[h], scale * a.scale_factor[h]);
}

// Scales and offsets of a lane's two rows, as A's type wants them. Where K is one group, its scale waits for the sums,
// so that W is exact; the zero point is loaded once.
template <class T>
LOWBIT_DEVICE row_scales constant_scales(const weight_only_arguments& a, const place& at) {
  row_scales s;
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) {
    s.scale[h] = scale_of<T>(a, h, 1);
    if constexpr (T::codes::offset) {
      const bool inside = a.zero_points && !a.in.scales && at.row(h) < a.out.n;
      s.offset[h] =
          offset_of<T>(a, h, inside ? static_cast<float>(global_load<int8_t>(a.zero_points + at.row(h))) : 0.0f);
    }
  }
  return s;
}

// Those of a group, from its scales and zero points in shared memory.
template <class T>
LOWBIT_DEVICE void load_scales(row_scales& s, const weight_only_arguments& a, uint32_t line, uint32_t zeros, int row) {
  float scale[2];
  shared_scales(scale, line, row, a.scale_dtype);
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) s.scale[h] = scale_of<T>(a, h, scale[h]);
  if constexpr (T::codes::offset) {
    if (!a.in.zero_points) return;
    LOWBIT_UNROLL
    for (int h = 0; h < 2; ++h)
      s.offset[h] = offset_of<T>(a, h, static_cast<float>(shared_load<int8_t>(zeros + row + h * 8)));
  }
}

// What a lane decodes the i-th product of a stage from.
template <class T>
struct lane_words {
  uint32_t own;  // address of the lane's first bytes
  u32x4 first, second;

  // The decoder's 16 bytes, and the columns in them.
  LOWBIT_DEVICE u32x4 words(int i) {
    if constexpr (T::w_bits == 8) {
      // Tiles are in the order of 8-bit products: columns 2 t, + 1 of 16 are in lane t / 2, columns 2 t + 8, + 9 in
      // lane 2 + t / 2, in the low or high half of a word as t is even or odd.
      if (i % 2 == 0) {
        first = shared_load<u32x4>(own + i / 2 * 2048);
        second = shared_load<u32x4>(own + i / 2 * 2048 + 2 * 16);
      }
      return i % 2 ? u32x4{first.z, first.w, second.z, second.w} : u32x4{first.x, first.y, second.x, second.y};
    } else {
      constexpr int products = T::tile_k / T::mma_k;  // of a tile
      if (i % products == 0) first = shared_load<u32x4>(own + i / products * 2048);
      return first;
    }
  }
  LOWBIT_DEVICE int columns(int i) const { return T::w_bits == 8 ? lane_index() % 2 : i % (T::tile_k / T::mma_k); }
};

// Fragments of a stage. `s` holds the scales of all of K, or where there are groups takes theirs.
template <class T>
LOWBIT_DEVICE void load_weights(const weight_only_arguments& a, uint32_t (&fragments)[T::products][4], uint32_t strip,
                                const lane_place<T>& lane, int step, bool one_group, row_scales& s) {
  lane_words<T> own{strip + lane.codes, {}, {}};
  const auto decode_product = [&](int i) {
    const u32x4 words = own.words(i);
    if constexpr (__is_same(typename T::codes, int4_to_bf16))
      int4_to_bf16::decode(fragments[i], words, own.columns(i), s);
    else
      decode<typename T::x_type, typename T::codes>(fragments[i], words, own.columns(i), s, s, a.constants);
  };
  uint32_t line = ring<T>::scales(strip);
  if (!a.in.scales || one_group) {  // a branch for every 16 columns would cost as much as their decoding
    if (a.in.scales) load_scales<T>(s, a, line, line + a.in.scale_line, lane.row);
    LOWBIT_UNROLL
    for (int i = 0; i < T::products; ++i) decode_product(i);
    return;
  }
  const stage_groups<T> groups(a.in.axis, step);
  int group = groups.first;
  uint32_t zeros = line + groups.count * a.in.scale_line;
  load_scales<T>(s, a, line, zeros, lane.row);
  LOWBIT_UNROLL
  for (int i = 0; i < T::products; ++i) {
    if (i > 0) {  // a group is whole 16s
      const int g = a.in.axis.of_column(step * T::stage_k + 16 * i);
      if (g != group) load_scales<T>(s, a, line += a.in.scale_line, zeros += 64, lane.row);
      group = g;
    }
    decode_product(i);
  }
}

template <class T>
LOWBIT_KERNEL(T::threads, 1)
void weight_only_kernel(const LOWBIT_GRID_CONSTANT weight_only_arguments a) {
  run_tiles<T>(a.in, [&](uint32_t staging, ring<T>& r, const place& at) {
    const lane_place<T> lane;  // of each tile anew: its registers are free while outputs are stored
    row_scales scales = constant_scales<T>(a, at);
    group_cursor<T> groups(a.in.axis, T::in_slices ? (warp_index() / 4 - 1) * a.in.slice : 0);
    float sums[T::columns / 2];
    const auto load = [&](uint32_t (&fragments)[T::products][4], uint32_t strip, int step) {
      load_weights<T>(a, fragments, strip, lane, step, groups.one(), scales);
      groups.advance();
    };
    if (!multiply_slices<T>(sums, a.in, r, shared_base(), load)) return;
    store_outputs<T>(a.out, at, staging, [&](int j, int h, int c, int32_t) { return sums[4 * j + 2 * h + c]; });
  });
}

}  // namespace lowbit::cuda::sm90
