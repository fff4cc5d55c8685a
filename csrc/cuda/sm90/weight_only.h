// weight_only on sm_90: 16-bit x, weights decoded to it in registers while the stage before is multiplied.
#pragma once

#include "cuda/generic/decode.h"
#include "cuda/sm90/group_scales.h"

namespace lowbit::cuda::sm90 {

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
  float scale_factor;  // of every scale: the powers of two that raw values owe, as far as scales pay them
  float bias;          // what raw values are too large by, the format's offset included
  const int8_t* zero_points;
};

// Scales and offsets of a lane's two rows, as A's type wants them.
template <class T>
LOWBIT_DEVICE row_scales scales_of(const weight_only_arguments& a, const stage_groups<T>& groups, uint32_t scales,
                                   int group, const place& at) {
  using X = typename T::x_type;
  row_scales s;
  const uint32_t line = scales + (group - groups.first) * a.in.scale_line;
  const uint32_t zeros = scales + groups.count * a.in.scale_line + (group - groups.first) * 64;
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int row = at.row_in_strip(h);
    const float scale = shared_scale(line, row, a.scale_dtype) * a.scale_factor;
    s.scale[h] = pack2<X>(scale, scale);
    if constexpr (T::codes::offset) {
      const float zero = a.in.zero_points ? static_cast<float>(shared_load<int8_t>(zeros + row)) : 0.0f;
      s.offset[h] = pack2<X>(-a.bias - zero, -a.bias - zero);
    }
  }
  return s;
}

// Where K is one group, its scale waits for the sums, so that W is exact; the zero point is loaded once.
template <class T>
LOWBIT_DEVICE row_scales constant_scales(const weight_only_arguments& a, const place& at) {
  using X = typename T::x_type;
  row_scales s;
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) {
    s.scale[h] = pack2<X>(a.scale_factor, a.scale_factor);
    if constexpr (T::codes::offset) {
      const bool inside = a.zero_points && at.row(h) < a.out.n;
      const float zero = inside ? static_cast<float>(global_load<int8_t>(a.zero_points + at.row(h))) : 0.0f;
      s.offset[h] = pack2<X>(-a.bias - zero, -a.bias - zero);
    }
  }
  return s;
}

// What a lane decodes the i-th product of a stage from.
template <class T>
struct lane_words {
  uint32_t warp;  // address of the warp's first tile
  u32x4 first, second;

  LOWBIT_DEVICE explicit lane_words(uint32_t strip) : warp(strip + warp_index() % 4 * 512) {}

  // The decoder's 16 bytes, and the columns in them.
  LOWBIT_DEVICE u32x4 words(int i) {
    const int lane = lane_index(), t = lane % 4;
    if constexpr (T::w_bits == 8) {
      // Tiles are in the order of 8-bit products: columns 2 t, + 1 of 16 are in lane t / 2, columns 2 t + 8, + 9 in
      // lane 2 + t / 2, in the low or high half of a word as t is even or odd.
      if (i % 2 == 0) {
        first = shared_load<u32x4>(warp + i / 2 * 2048 + (lane - t + t / 2) * 16);
        second = shared_load<u32x4>(warp + i / 2 * 2048 + (lane - t + 2 + t / 2) * 16);
      }
      return i % 2 ? u32x4{first.z, first.w, second.z, second.w} : u32x4{first.x, first.y, second.x, second.y};
    } else {
      constexpr int products = T::tile_k / T::mma_k;  // of a tile
      if (i % products == 0) first = shared_load<u32x4>(warp + i / products * 2048 + lane * 16);
      return first;
    }
  }
  LOWBIT_DEVICE int columns(int i) const { return T::w_bits == 8 ? lane_index() % 2 : i % (T::tile_k / T::mma_k); }
};

// Fragments of a stage. `s` holds the scales of all of K, or where there are groups takes theirs.
template <class T>
LOWBIT_DEVICE void load_weights(const weight_only_arguments& a, uint32_t (&fragments)[T::products][4], uint32_t strip,
                                int step, const place& at, row_scales& s) {
  const stage_groups<T> groups(a.in.axis, step);
  const uint32_t scales = ring<T>::scales(strip);
  lane_words<T> lane(strip);
  int group = groups.first;
  if (a.in.scales) s = scales_of<T>(a, groups, scales, group, at);
  LOWBIT_UNROLL
  for (int i = 0; i < T::products; ++i) {
    if (i > 0 && groups.count > 1) {  // a group is whole 16s
      const int g = a.in.axis.of_column(step * T::stage_k + 16 * i);
      if (g != group) s = scales_of<T>(a, groups, scales, group = g, at);
    }
    const u32x4 words = lane.words(i);
    decode<typename T::x_type, typename T::codes>(fragments[i], words, lane.columns(i), s, s, a.constants);
  }
}

template <class T>
LOWBIT_KERNEL(T::threads, 1)
void weight_only_kernel(const LOWBIT_GRID_CONSTANT weight_only_arguments a) {
  run_tiles<T>(a.in, [&](uint32_t staging, ring<T>& r, const place& at) {
    row_scales scales{};
    if (!a.in.scales) scales = constant_scales<T>(a, at);
    float sums[T::columns / 2];
    const auto load = [&](uint32_t (&fragments)[T::products][4], uint32_t strip, int step) {
      load_weights<T>(a, fragments, strip, step, at, scales);
    };
    if (!multiply_slices<T>(sums, a.in, r, shared_base(), load)) return;
    store_outputs<T>(a.out, at, staging, [&](int j, int h, int c, int32_t) { return sums[4 * j + 2 * h + c]; });
  });
}

}  // namespace lowbit::cuda::sm90
