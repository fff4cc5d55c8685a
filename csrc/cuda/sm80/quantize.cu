// A row by a CTA: 512 threads take 8 columns each in turn. Rows of up to 16384 columns are read once and held in
// registers; longer ones are read again, from L2, for each thing that has to be known of all of the row before.
#include "cuda/sm80/quantize.h"

#include "cuda/common/convert.h"
#include "cuda/common/launch.h"

namespace lowbit::cuda::sm80 {
namespace {

constexpr int threads = norm_lanes, warps = threads / 32, vector = norm_vector;
constexpr int held_vectors = 4;  // of a thread

struct arguments {
  quantize_problem p;
  activation_format_row format;
  bool whole_x, whole_other, whole_sum, whole_weight, whole_q;  // vectors may be loaded and stored as such
  int64_t rows;                                                 // of scales: m, or what swizzled ones are padded to
};

// data[at ..] as fp32, `count` of them, the others 0.
LOWBIT_DEVICE void load_vector(const void* data, int64_t at, int dtype, bool whole, int count, float (&v)[vector]) {
  const uint8_t* const from = static_cast<const uint8_t*>(data) + at * (dtype == LOWBIT_F32 ? 4 : 2);
  const auto to_f32 = [&](uint16_t bits) {
    return dtype == LOWBIT_F16 ? to_float<f16_t>(bits) : to_float<bf16_t>(bits);
  };
  if (whole && count == vector) {
    const u32x4 a = global_load<u32x4>(from);
    const uint32_t words[4] = {a.x, a.y, a.z, a.w};
    if (dtype == LOWBIT_F32) {
      const u32x4 b = global_load<u32x4>(from + 16);
      const uint32_t more[4] = {b.x, b.y, b.z, b.w};
      LOWBIT_UNROLL
      for (int i = 0; i < vector; ++i) v[i] = as_float(i < 4 ? words[i % 4] : more[i % 4]);
    } else {
      LOWBIT_UNROLL
      for (int i = 0; i < vector; ++i) v[i] = to_f32(static_cast<uint16_t>(words[i / 2] >> i % 2 * 16));
    }
    return;
  }
  LOWBIT_UNROLL
  for (int i = 0; i < vector; ++i) {
    v[i] = 0;
    if (i < count)
      v[i] = dtype == LOWBIT_F32 ? global_load<float>(from + 4 * i) : to_f32(global_load<uint16_t>(from + 2 * i));
  }
}

LOWBIT_DEVICE float round_to(float value, int dtype) {
  if (dtype == LOWBIT_F32) return value;
  return dtype == LOWBIT_F16 ? low<f16_t>(pack2<f16_t>(value, 0)) : low<bf16_t>(pack2<bf16_t>(value, 0));
}

LOWBIT_DEVICE void store_vector(void* data, int64_t at, int dtype, bool whole, int count, const float (&v)[vector]) {
  uint8_t* const to = static_cast<uint8_t*>(data) + at * (dtype == LOWBIT_F32 ? 4 : 2);
  if (dtype == LOWBIT_F32) {
    LOWBIT_UNROLL
    for (int i = 0; i < vector; i += 4) {
      if (whole && count == vector)
        global_store<u32x4>(to + 4 * i, u32x4{as_u32(v[i]), as_u32(v[i + 1]), as_u32(v[i + 2]), as_u32(v[i + 3])});
      else {
        LOWBIT_UNROLL
        for (int j = i; j < i + 4; ++j)
          if (j < count) global_store<float>(to + 4 * j, v[j]);
      }
    }
    return;
  }
  uint32_t w[vector / 2];
  LOWBIT_UNROLL
  for (int i = 0; i < vector / 2; ++i)
    w[i] = dtype == LOWBIT_F16 ? pack2<f16_t>(v[2 * i], v[2 * i + 1]) : pack2<bf16_t>(v[2 * i], v[2 * i + 1]);
  if (whole && count == vector) {
    global_store<u32x4>(to, u32x4{w[0], w[1], w[2], w[3]});
    return;
  }
  LOWBIT_UNROLL
  for (int i = 0; i < vector; ++i)
    if (i < count) global_store<uint16_t>(to + 2 * i, static_cast<uint16_t>(w[i / 2] >> i % 2 * 16));
}

// What is quantized, less what RMSNorm multiplies it by. `again`: not for the first time.
LOWBIT_DEVICE void load_values(const arguments& a, int64_t row, int64_t column, int count, bool again,
                               float (&v)[vector]) {
  const quantize_problem& p = a.p;
  const bool residual = p.source == activation_source::rms_norm && p.other;
  if (residual && p.sum && again) {  // `other` may be gone
    load_vector(p.sum, row * p.sum_stride + column, p.x_dtype, a.whole_sum, count, v);
    return;
  }
  load_vector(p.x, row * p.x_stride + column, p.x_dtype, a.whole_x, count, v);
  if (!p.other) return;
  float other[vector];
  load_vector(p.other, row * p.other_stride + column, p.x_dtype, a.whole_other, count, other);
  LOWBIT_UNROLL
  for (int i = 0; i < vector; ++i) v[i] = residual ? round_to(v[i] + other[i], p.x_dtype) : silu_mul(v[i], other[i]);
  if (residual && p.sum) store_vector(p.sum, row * p.sum_stride + column, p.x_dtype, a.whole_sum, count, v);
}

LOWBIT_DEVICE void normalize(const arguments& a, int64_t column, int count, float inverse, float (&v)[vector]) {
  float weight[vector];
  if (a.p.weight) load_vector(a.p.weight, column, a.p.weight_dtype, a.whole_weight, count, weight);
  LOWBIT_UNROLL
  for (int i = 0; i < vector; ++i) v[i] = v[i] * inverse * (a.p.weight ? weight[i] : 1.0f);
}

// Of all threads, every one gets it; `join` in the order of norm_lanes. Two barriers.
template <class T, class Join>
LOWBIT_DEVICE T reduce(T value, uint32_t shared, const Join& join) {
  LOWBIT_UNROLL
  for (int apart = 16; apart > 0; apart /= 2) value = join(value, shuffle_down(value, apart));
  if (lane_index() == 0) shared_store<T>(shared + static_cast<uint32_t>(warp_index()) * 4, value);
  sync_threads();
  T all = shared_load<T>(shared);
  LOWBIT_UNROLL
  for (uint32_t warp = 1; warp < warps; ++warp) all = join(all, shared_load<T>(shared + warp * 4));
  sync_threads();
  return all;
}

// What is known of values before they are quantized. Bits of magnitudes compare as magnitudes do, and infinities and
// NaN come last.
struct extremes {
  uint32_t magnitude = 0;
  float low = 0, high = 0;

  LOWBIT_DEVICE void take(float value) {
    const uint32_t bits = as_u32(value) & 0x7fffffffu;
    magnitude = bits > magnitude ? bits : magnitude;
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  LOWBIT_DEVICE bool good() const { return magnitude < 0x7f800000u; }
  LOWBIT_DEVICE bool nan() const { return magnitude > 0x7f800000u; }
};

// quantization_of (gemm/activation.h).
LOWBIT_DEVICE row_quantization int8_quantization(bool symmetric, float low, float high, bool nan) {
  const float range = symmetric ? (high > -low ? high : -low) : high - low, steps = symmetric ? 127.0f : 255.0f;
  if (nan || !(range <= largest_f32)) return {quiet_nan, 0, 0};
  const float inverse = divide(steps, range);
  if (!(inverse <= largest_f32)) return {0, 0, 0};
  return {divide(range, steps), inverse, symmetric ? 0 : static_cast<int32_t>(round_even(-128.0f - low * inverse))};
}

// quantize_value (gemm/activation.h).
LOWBIT_DEVICE uint32_t to_int8(float value, const row_quantization& r) {
  const float q = round_even(value * r.inverse) + static_cast<float>(r.zero_point);
  return static_cast<uint32_t>(static_cast<int32_t>(q < -128.0f  ? -128.0f
                                                    : q > 127.0f ? 127.0f
                                                    : q == q     ? q
                                                                 : 0.0f)) &
         0xffu;
}

LOWBIT_DEVICE void store_codes(const arguments& a, int64_t row, int64_t column, int count, int bits,
                               const uint32_t (&code)[vector]) {
  uint8_t* const q = static_cast<uint8_t*>(a.p.q) + row * a.p.q_stride + column * bits / 8;
  uint32_t words[2] = {0, 0};
  LOWBIT_UNROLL
  for (int i = 0; i < vector; ++i)
    if (bits == 8)
      words[i / 4] |= code[i] << i % 4 * 8;
    else
      words[0] |= code[i] << i * 4;
  const bool whole = a.whole_q && count == vector;
  if (whole && bits == 8)
    global_store<u32x2>(q, u32x2{words[0], words[1]});
  else if (whole)
    global_store<uint32_t>(q, words[0]);
  else {
    LOWBIT_UNROLL
    for (int i = 0; i < vector; ++i)
      if (i * 8 < count * bits) global_store<uint8_t>(q + i, static_cast<uint8_t>(words[i / 4] >> i % 4 * 8));
  }
}

LOWBIT_DEVICE void store_scale(const arguments& a, int64_t row, int64_t block, int64_t blocks,
                               const block_quantization& r) {
  const activation_format_row& format = a.format;
  const int64_t at = a.p.swizzled   ? swizzled_scale(row, block, blocks)
                     : format.block ? row * a.p.scale_stride + block
                                    : row;
  if (format.scale_dtype == LOWBIT_F32)
    global_store<float>(static_cast<float*>(a.p.scales) + at, r.scale);
  else
    global_store<uint8_t>(static_cast<uint8_t*>(a.p.scales) + at, r.bits);
}

LOWBIT_DEVICE block_quantization quantization_of(const arguments& a, const extremes& e, float global) {
  const float max = as_float(e.magnitude);
  switch (a.p.format) {
    case activation_format::mxfp8:
      return mx_quantization(max, e.good(), 8);
    case activation_format::mxfp4:
      return mx_quantization(max, e.good(), 2);
    case activation_format::nvfp4:
      return nvfp4_quantization(max, e.good(), global);
    default:
      return e4m3_quantization(max, e.good(), a.p.power_of_two);
  }
}

template <int vectors>  // held by a thread; 0: the row is longer
LOWBIT_KERNEL(threads, 1) void quantize_kernel(const arguments a) {
  const quantize_problem& p = a.p;
  const activation_format_row& format = a.format;
  const uint32_t shared = shared_base();
  const int64_t blocks = format.block ? ceil_div(p.k, format.block) : 1;
  const bool to_int = p.format == activation_format::int8 || p.format == activation_format::int8_asymmetric;
  const float global = p.global_scale ? global_load<float>(p.global_scale) : 1.0f;
  const auto count_at = [&](int64_t column) {
    return static_cast<int>(p.k - column > vector ? vector : p.k - column > 0 ? p.k - column : 0);
  };

  for (int64_t row = cta_index(); row < a.rows; row += num_ctas()) {
    // Scales that only fill up their 512 bytes.
    if (p.swizzled)
      for (int64_t block = thread_index() + (row < p.m ? blocks : 0); block < round_up(blocks, 4); block += threads)
        store_scale(a, row, block, blocks, {0, 0, 0});
    if (row >= p.m) continue;

    float held[vectors ? vectors : 1][vector];
    // visit(values, column, count) for the thread's vectors; all threads come equally often.
    const auto for_each = [&](bool again, const auto& visit) {
      if constexpr (vectors > 0) {
        LOWBIT_UNROLL
        for (int i = 0; i < vectors; ++i) {
          if (static_cast<int64_t>(i) * threads * vector >= p.k) break;
          const int64_t column = static_cast<int64_t>(i * threads + thread_index()) * vector;
          if (!again) load_values(a, row, column, count_at(column), again, held[i]);
          visit(held[i], column, count_at(column));
        }
      } else {
        for (int64_t first = 0; first < p.k; first += threads * vector) {
          const int64_t column = first + thread_index() * vector;
          load_values(a, row, column, count_at(column), again, held[0]);
          visit(held[0], column, count_at(column));
        }
      }
    };

    bool again = false;
    float inverse = 1;
    const bool norm = p.source == activation_source::rms_norm;
    if (norm) {
      float sum = 0;
      for_each(again, [&](float (&v)[vector], int64_t, int) {
        LOWBIT_UNROLL
        for (int i = 0; i < vector; ++i) sum = multiply_add(v[i], v[i], sum);
      });
      sum = reduce(sum, shared, [](float x, float y) { return x + y; });
      inverse = divide(1.0f, square_root(divide(sum, static_cast<float>(p.k)) + p.epsilon));
      again = true;
    }
    bool normalized = false;  // held values are
    const auto for_each_value = [&](const auto& visit) {
      for_each(again, [&](float (&v)[vector], int64_t column, int count) {
        if (norm && !(vectors > 0 && normalized)) normalize(a, column, count, inverse, v);
        visit(v, column, count);
      });
      again = normalized = true;
    };

    extremes of_row;
    if (format.block == 0) {
      for_each_value([&](float (&v)[vector], int64_t, int count) {
        LOWBIT_UNROLL
        for (int i = 0; i < vector; ++i)
          if (i < count) of_row.take(v[i]);
      });
      of_row.magnitude = reduce(of_row.magnitude, shared, [](uint32_t x, uint32_t y) { return x > y ? x : y; });
      if (p.format == activation_format::int8_asymmetric) {
        of_row.low = reduce(of_row.low, shared, [](float x, float y) { return y < x ? y : x; });
        of_row.high = reduce(of_row.high, shared, [](float x, float y) { return y > x ? y : x; });
      } else {
        of_row.high = of_row.good() ? as_float(of_row.magnitude) : 0;
      }
    }

    if (to_int) {
      const bool symmetric = p.format == activation_format::int8;
      const row_quantization r =
          int8_quantization(symmetric, of_row.low, of_row.high, symmetric ? !of_row.good() : of_row.nan());
      if (thread_index() == 0) {
        global_store<float>(static_cast<float*>(p.scales) + row, r.scale);
        if (p.zero_points) global_store<int32_t>(p.zero_points + row, r.zero_point);
      }
      for_each_value([&](float (&v)[vector], int64_t column, int count) {
        uint32_t code[vector];
        LOWBIT_UNROLL
        for (int i = 0; i < vector; ++i) code[i] = to_int8(v[i], r);
        store_codes(a, row, column, count, 8, code);
      });
      continue;
    }

    block_quantization r{};
    if (format.block == 0) {
      r = quantization_of(a, of_row, global);
      if (thread_index() == 0) store_scale(a, row, 0, 1, r);
    }
    for_each_value([&](float (&v)[vector], int64_t column, int count) {
      if (format.block) {
        extremes e;
        LOWBIT_UNROLL
        for (int i = 0; i < vector; ++i)
          if (i < count) e.take(v[i]);
        LOWBIT_UNROLL
        for (int apart = 1; apart < 16; apart *= 2) {  // block / 8 lanes share a scale
          const uint32_t other = shuffle_xor(e.magnitude, apart);
          if (apart * vector < format.block && other > e.magnitude) e.magnitude = other;
        }
        r = quantization_of(a, e, global);
        if (column % format.block == 0 && count > 0) store_scale(a, row, column / format.block, blocks, r);
      }
      uint32_t code[vector];
      LOWBIT_UNROLL
      for (int i = 0; i < vector; i += 2) {
        const float first = r.inverse != 0 && i < count ? v[i] * r.inverse : 0;
        const float second = r.inverse != 0 && i + 1 < count ? v[i + 1] * r.inverse : 0;
        if (format.bits == 8) {
          const uint32_t pair = pack_e4m3x2(first, second);
          code[i] = pair & 0xff;
          code[i + 1] = pair >> 8;
        } else {
          code[i] = f32_to_e2m1(first);
          code[i + 1] = f32_to_e2m1(second);
        }
      }
      store_codes(a, row, column, count, format.bits, code);
    });
  }
}

bool is_whole(const void* data, int64_t stride_bytes, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0 && stride_bytes % bytes == 0;
}

}  // namespace

lowbit_status quantize(const quantize_problem& p, void* stream) {
  const activation_format_row& format = describe(p.format);
  const int64_t size = dtype_bytes(p.x_dtype);
  arguments a{};
  a.p = p;
  a.format = format;
  a.whole_x = is_whole(p.x, p.x_stride * size, 16);
  a.whole_other = is_whole(p.other, p.other_stride * size, 16);
  a.whole_sum = is_whole(p.sum, p.sum_stride * size, 16);
  a.whole_weight = is_whole(p.weight, 0, 16);
  a.whole_q = is_whole(p.q, p.q_stride, format.bits);
  a.rows = p.swizzled ? round_up(p.m, 128) : p.m;
  constexpr int64_t most = 1 << 20;
  launch_shape shape{};
  shape.grid_x = static_cast<int>(a.rows < most ? a.rows : most);
  shape.threads = threads;
  shape.shared_bytes = warps * 4;
  shape.stream = stream;
  if (p.k <= int64_t{held_vectors} * threads * vector) return launch<quantize_kernel<held_vectors>>(shape, a);
  return launch<quantize_kernel<0>>(shape, a);
}

}  // namespace lowbit::cuda::sm80
