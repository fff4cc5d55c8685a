// Weights as floats, from their packed or their canonical form: a row by a CTA at a time.
#include <cstddef>

#include "cuda/common/convert.h"
#include "cuda/common/launch.h"
#include "cuda/common/memory.h"
#include "cuda/sm80/weights.h"
#include "layout/canonical.h"

namespace lowbit::cuda::sm80 {
namespace {

constexpr int threads = 256;

// What scale_arrays is to the host: numbers in device memory, and how to read them.
struct scale_reader {
  const uint8_t *scales, *zero_points, *mins, *super_scales, *super_mins;  // null: there are none
  int scale_dtype, super_dtype;
  int super_groups;
  bool super_flat;
  const float* offset;  // of two levels with a table, in the packed header
  float given_offset;   // where there is no header
};

struct dequantize_arguments {
  fragment_shape shape;
  const uint8_t* codes;
  int64_t row_bytes;  // canonical
  scale_reader numbers;
  const float* global_scale;  // in the packed header
  float given_global_scale;   // where there is none
  uint8_t* out;
  int dtype;
  float values[256];
};

struct table_arguments : dequantize_arguments {
  float scale_values[256];  // of formats whose scales are codes
};

LOWBIT_DEVICE float load_number(const uint8_t* data, int64_t i, int dtype) {
  constexpr minifloat scale = e4m3;  // a copy that device code has
  switch (dtype) {
    case LOWBIT_F32:
      return global_load<float>(data + i * 4);
    case LOWBIT_F16:
      return f16_to_f32(global_load<uint16_t>(data + i * 2));
    case LOWBIT_BF16:
      return bf16_to_f32(global_load<uint16_t>(data + i * 2));
    case LOWBIT_E8M0:
      return e8m0_to_f32(global_load<uint8_t>(data + i));
    case LOWBIT_E4M3:
      return scale.value(global_load<uint8_t>(data + i));
    default:
      return static_cast<float>(global_load<int8_t>(data + i));
  }
}

// As scale_arrays::number of layout/packed.h.
template <class Arguments>
LOWBIT_DEVICE float scale_number(const Arguments& a, const uint8_t* data, int64_t i, const uint8_t* super, int64_t j) {
  const scale_reader& r = a.numbers;
  if (!super) return load_number(data, i, r.scale_dtype);
  const float factor = load_number(super, j, r.super_dtype);
  if constexpr (__is_same(Arguments, table_arguments))
    return a.scale_values[global_load<uint8_t>(data + i)] * factor +
           (r.offset ? global_load<float>(r.offset) : r.given_offset);
  else
    return static_cast<float>(global_load<int8_t>(data + i)) * factor;
}

template <int bits, bool packed, class Arguments>
LOWBIT_KERNEL(threads, 1)
void dequantize_kernel(const Arguments a) {
  const fragment_shape& s = a.shape;
  const scale_reader& r = a.numbers;
  const float global_scale = a.global_scale ? global_load<float>(a.global_scale) : a.given_global_scale;
  const int64_t block = packed ? strip_rows : 1;
  for (int64_t row = cta_index(); row < s.n; row += num_ctas()) {
    for (int64_t k = thread_index(); k < s.k; k += threads) {
      const int64_t group = k / s.group_k;
      const int64_t bit = packed ? s.code_bit(row, s.column(k)) : row * a.row_bytes * 8 + k * bits;
      const uint32_t code = global_load<uint8_t>(a.codes + bit / 8) >> (bit % 8) & ((1u << bits) - 1);
      const int64_t i = interleaved(packed ? row : row / s.group_n, group, s.groups, block);
      int64_t j = 0;
      if (r.super_flat)
        j = (row * s.groups + group) / r.super_groups;
      else if (r.super_groups)
        j = interleaved(row, group / r.super_groups, ceil_div(s.groups, r.super_groups), block);
      const float value = a.values[code];
      const float scale = scale_number(a, r.scales, i, r.super_scales, j);
      float weight;
      if (r.mins) {
        weight = multiply_add(value, scale, scale_number(a, r.mins, i, r.super_mins, j));
      } else {
        const float zero = r.zero_points ? static_cast<float>(global_load<int8_t>(r.zero_points + i)) : 0.0f;
        weight = (value - zero) * scale;
      }
      weight *= global_scale;
      const int64_t at = row * s.k + k;
      if (a.dtype == LOWBIT_F32)
        global_store<float>(a.out + at * 4, weight);
      else
        global_store<uint16_t>(a.out + at * 2, a.dtype == LOWBIT_F16 ? f32_to_f16(weight) : f32_to_bf16(weight));
    }
  }
}

template <bool packed, class Arguments>
lowbit_status run(const Arguments& a, void* stream) {
  constexpr int64_t most = 1 << 20;
  launch_shape shape{};
  shape.grid_x = static_cast<int>(a.shape.n < most ? a.shape.n : most);
  shape.threads = threads;
  shape.stream = stream;
  if (a.shape.bits == 2) return launch<dequantize_kernel<2, packed, Arguments>>(shape, a);
  if (a.shape.bits == 4) return launch<dequantize_kernel<4, packed, Arguments>>(shape, a);
  return launch<dequantize_kernel<8, packed, Arguments>>(shape, a);
}

template <bool packed>
lowbit_status run_for(const lowbit_weight& w, table_arguments* a, void* stream) {
  const format_row& f = format_at(w.format);
  for (int c = 0; c < 1 << f.bits; ++c) a->values[c] = f.values[c];
  a->numbers.scale_dtype = w.scale_dtype;
  a->numbers.super_dtype = f.super_dtype();
  a->numbers.super_groups = f.super_groups;
  a->numbers.super_flat = f.two_levels() && f.super_flat();
  if (!f.scale_values) return run<packed>(static_cast<const dequantize_arguments&>(*a), stream);
  for (int c = 0; c < 256; ++c) a->scale_values[c] = f.scale_values[c];
  return run<packed>(*a, stream);
}

}  // namespace

lowbit_status dequantize_packed(const lowbit_weight& w, const void* packed, void* out, int dtype, void* stream) {
  const fragment_offsets o = fragment_offsets_of(w);
  const uint8_t* const base = static_cast<const uint8_t*>(packed);
  const auto part = [&](int64_t offset) { return offset ? base + offset : nullptr; };
  table_arguments a{};
  a.shape = fragment_shape_of(w);
  a.codes = base + o.codes;
  a.numbers.scales = base + o.scales;
  a.numbers.zero_points = part(o.zero_points);
  a.numbers.mins = part(o.mins);
  a.numbers.super_scales = part(o.super_scales);
  a.numbers.super_mins = part(o.super_mins);
  a.numbers.offset = reinterpret_cast<const float*>(base + offsetof(packed_header, scale_offset));
  a.global_scale = reinterpret_cast<const float*>(base + offsetof(packed_header, global_scale));
  a.out = static_cast<uint8_t*>(out);
  a.dtype = dtype;
  return run_for<true>(w, &a, stream);
}

lowbit_status dequantize(const lowbit_weight& w, void* out, int dtype, void* stream) {
  table_arguments a{};
  a.shape = fragment_shape_of(w);
  a.codes = static_cast<const uint8_t*>(w.codes);
  a.row_bytes = ceil_div(w.k * a.shape.bits, 8);
  a.numbers.scales = static_cast<const uint8_t*>(w.scales);
  a.numbers.zero_points = reinterpret_cast<const uint8_t*>(w.zero_points);
  a.numbers.mins = static_cast<const uint8_t*>(w.mins);
  a.numbers.super_scales = static_cast<const uint8_t*>(w.super_scales);
  a.numbers.super_mins = static_cast<const uint8_t*>(w.super_mins);
  a.numbers.given_offset = w.scale_offset;
  a.given_global_scale = w.global_scale;
  a.out = static_cast<uint8_t*>(out);
  a.dtype = dtype;
  return run_for<false>(w, &a, stream);
}

}  // namespace lowbit::cuda::sm80
