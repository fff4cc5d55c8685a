// Weights on the device against the host's functions, to the bit: packing, unpacking, decoding, encoding.
#include "cuda/sm80/weights.h"
#include "emulator/emulator.h"
#include "layout/canonical.h"
#include "support.h"

namespace lowbit::cuda {
namespace {

// Formats by bits and by how scales come; more of them would run the same kernels.
constexpr const char* formats[] = {"int4",  "int8",  "int2", "ternary", "fp8_e4m3", "fp8_e5m2", "mxfp4",
                                   "mxfp8", "nvfp4", "nf4",  "nf4_dq",  "q4_1",     "q4_k",     "iq4_nl"};

// What may be absent is a byte that nobody looks at.
emulator::buffer<uint8_t> on_device(const void* data, size_t bytes) {
  static constexpr uint8_t nothing = 0;
  return bytes ? emulator::buffer<uint8_t>(static_cast<const uint8_t*>(data), bytes)
               : emulator::buffer<uint8_t>(&nothing, 1);
}

emulator::buffer<uint8_t> on_device(const std::vector<uint8_t>& data) { return on_device(data.data(), data.size()); }

// Random scales of two levels, and minima.
struct second_level {
  std::vector<uint8_t> mins, super_scales, super_mins;

  second_level(canonical_weight& w, random_source& random) {
    const format_row& f = w.format();
    lowbit_weight& d = w.description;
    const auto numbers = [&](int64_t count, int dtype) {
      std::vector<uint8_t> data(static_cast<size_t>(count * dtype_bytes(dtype)));
      for (int64_t i = 0; i < count; ++i) {
        if (is_float_dtype(dtype))
          store_from_f32(data.data(), i, dtype, random.uniform(-2, 2));
        else
          data[static_cast<size_t>(i)] = static_cast<uint8_t>(random.below(256));
      }
      return data;
    };
    const super_count supers(f, fragment_shape_of(d), strip_rows);
    if (f.two_levels()) {
      w.scales = numbers(w.num_scales(), d.scale_dtype);
      super_scales = numbers(supers.canonical(), f.super_dtype());
      d.scale_offset = f.scale_values ? 0.125f : 0.0f;
    }
    if (f.minimum) mins = numbers(w.num_scales(), d.scale_dtype);
    if (f.minimum && f.two_levels()) super_mins = numbers(supers.canonical(), f.super_dtype());
    d.scales = w.scales.data();
    d.mins = mins.empty() ? nullptr : mins.data();
    d.super_scales = super_scales.empty() ? nullptr : super_scales.data();
    d.super_mins = super_mins.empty() ? nullptr : super_mins.data();
  }
};

struct problem {
  canonical_weight w;
  second_level second;
  size_t zero_bytes;
  emulator::buffer<uint8_t> codes, scales, zero_points, mins, super_scales, super_mins;
  lowbit_weight device;  // pointers into device memory

  problem(canonical_weight weight, random_source& random)
      : w(std::move(weight)),
        second(w, random),
        zero_bytes(w.zero_points.size()),
        codes(on_device(w.codes)),
        scales(on_device(w.scales)),
        zero_points(on_device(w.description.zero_points, zero_bytes)),
        mins(on_device(second.mins)),
        super_scales(on_device(second.super_scales)),
        super_mins(on_device(second.super_mins)),
        device(w.description) {
    device.packed_for = LOWBIT_CUDA;
    device.codes = codes.data();
    device.scales = scales.data();
    if (zero_bytes) device.zero_points = reinterpret_cast<const int8_t*>(zero_points.data());
    if (device.mins) device.mins = mins.data();
    if (device.super_scales) device.super_scales = super_scales.data();
    if (device.super_mins) device.super_mins = super_mins.data();
  }
};

struct shape {
  int64_t n, k, group_n, group_k;
};
// Around strips of 64 rows, tiles of 16, steps of 128 columns; groups that are whole 16s and that are not.
constexpr shape shapes[] = {{1, 1, 1, 1},      {7, 33, 1, 33},    {64, 128, 1, 32},   {65, 160, 3, 48},
                            {17, 200, 16, 24}, {80, 257, 128, 7}, {130, 96, 128, 128}};

template <class Visit>
void for_each_problem(const Visit& visit) {
  random_source random(11);
  int turn = 0;
  for (const char* format : formats) {
    const format_row& f = format_at(find_format(format));
    for (const shape& s : shapes) {
      weight_options o{format, s.n, f.block_k ? round_up(s.k, f.block_k) : s.k};
      o.group_n = s.group_n;
      o.group_k = s.group_k;
      o.scale_dtype = random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16});
      o.zero_point = f.zero_point && ++turn % 2;
      visit(problem(random_weight(o, random), random), format);
    }
  }
}

#define CHECK_RAN(call)                                                    \
  do {                                                                     \
    CHECK_EQ(call, LOWBIT_OK);                                             \
    CHECK(emulator::failure().empty(), "%s", emulator::failure().c_str()); \
  } while (false)

size_t packed_size(const lowbit_weight& w) { return static_cast<size_t>(fragment_offsets_of(w).total); }

std::vector<uint8_t> packed_on_host(const problem& p) {
  std::vector<uint8_t> packed(packed_size(p.device));
  lowbit_weight w = p.w.description;
  w.packed_for = LOWBIT_CUDA;
  CHECK_EQ(pack_fragments(w, packed.data(), packed.size(), nullptr), LOWBIT_OK);
  return packed;
}

}  // namespace

TEST(packing_writes_what_the_host_writes) {
  for_each_problem([](const problem& p, const char* format) {
    const std::vector<uint8_t> wanted = packed_on_host(p);
    emulator::buffer<uint8_t> packed(wanted.size());
    CHECK_RAN(sm80::pack(p.device, packed.data(), nullptr));
    const std::vector<uint8_t> got = packed.values();
    size_t at = 0;
    while (at < got.size() && got[at] == wanted[at]) ++at;
    CHECK(at == got.size(), "%s %lld x %lld: byte %zu of %zu is %02x, %02x on the host", format,
          static_cast<long long>(p.device.n), static_cast<long long>(p.device.k), at, got.size(), got[at], wanted[at]);
  });
}

TEST(unpacking_inverts) {
  for_each_problem([](const problem& p, const char* format) {
    const emulator::buffer<uint8_t> packed(packed_on_host(p));
    emulator::buffer<uint8_t> codes(p.w.codes.size()), scales(p.w.scales.size()), zero_points(p.zero_bytes + 1),
        mins(p.mins.size()), super_scales(p.super_scales.size()), super_mins(p.super_mins.size());
    const lowbit_weight_arrays out{codes.data(), scales.data(),       reinterpret_cast<int8_t*>(zero_points.data()),
                                   mins.data(),  super_scales.data(), super_mins.data()};
    CHECK_RAN(sm80::unpack(p.device, packed.data(), out, nullptr));
    CHECK(codes.values() == p.codes.values(), "%s: codes", format);
    CHECK(!p.device.mins || mins.values() == p.second.mins, "%s: minima", format);
    CHECK(!p.device.super_scales || super_scales.values() == p.second.super_scales, "%s: super scales", format);
    CHECK(!p.device.super_mins || super_mins.values() == p.second.super_mins, "%s: super minima", format);
    CHECK(scales.values() == p.scales.values(), "%s: scales", format);
    if (p.zero_bytes) {
      std::vector<uint8_t> got = zero_points.values_or(0xcd);
      CHECK(got.back() == 0xcd, "%s: a zero point too many", format);
      got.pop_back();
      CHECK(got == p.zero_points.values(), "%s: zero points", format);
    }
  });
}

TEST(decoding_gives_the_host_s_floats) {
  for_each_problem([](const problem& p, const char* format) {
    const std::vector<uint8_t> host = packed_on_host(p);
    const emulator::buffer<uint8_t> packed(host);
    for (const lowbit_dtype dtype : {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16}) {
      const size_t bytes = static_cast<size_t>(p.device.n * p.device.k * dtype_bytes(dtype));
      std::vector<uint8_t> wanted(bytes);
      CHECK_EQ(dequantize(p.w.description, wanted.data(), dtype, nullptr), LOWBIT_OK);
      emulator::buffer<uint8_t> out(bytes);
      CHECK_RAN(sm80::dequantize(p.device, out.data(), dtype, nullptr));
      CHECK(out.values() == wanted, "%s in %s, from the canonical form", format, dtype_name(dtype));
      out.clear();
      CHECK_RAN(sm80::dequantize_packed(p.device, packed.data(), out.data(), dtype, nullptr));
      CHECK(out.values() == wanted, "%s in %s, from the packed form", format, dtype_name(dtype));
    }
  });
}

TEST(encoding_gives_the_host_s_codes) {
  random_source random(5);
  for (const char* format : formats) {
    const format_row& f = format_at(find_format(format));
    for (const lowbit_dtype w_dtype : {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16}) {
      lowbit_encode_args a{};
      CHECK_EQ(lowbit_format_find(format, &a.format), LOWBIT_OK);
      a.n = 5;
      a.k = f.block_k ? 3 * f.block_k : 37;
      a.group_n = f.block_n ? f.block_n : 2;
      a.group_k = f.block_k ? f.block_k : 9;
      a.w_dtype = w_dtype;
      a.divisor_dtype = random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16});
      const int64_t groups = ceil_div(a.n, a.group_n) * ceil_div(a.k, a.group_k);
      std::vector<uint8_t> w(static_cast<size_t>(a.n * a.k * 4)), divisor(static_cast<size_t>(groups * 4));
      std::vector<uint8_t> zeros(static_cast<size_t>(groups));
      // On the grid of values and between two of them, zeros of both signs, what saturates, what is no number.
      const float odd[] = {0.0f, -0.0f, 1e30f, -1e30f, INFINITY, -INFINITY, NAN, 1e-30f, -1e-30f};
      for (int64_t i = 0; i < a.n * a.k; ++i) {
        const int64_t c = random.below(1 << f.bits);
        const float value = f.values[c], next = f.values[random.below(1 << f.bits)];
        float x = i % 3 == 0 ? value : i % 3 == 1 ? (value + next) / 2 : random.uniform(-2, 2) * 4;
        if (random.below(8) == 0) x = odd[random.below(9)];
        store_from_f32(w.data(), i, w_dtype, x);
      }
      for (int64_t i = 0; i < groups; ++i) {
        store_from_f32(divisor.data(), i, a.divisor_dtype, random.of({1.0f, 1.0f, 0.25f, 3.0f, 0.0f}));
        zeros[static_cast<size_t>(i)] = static_cast<uint8_t>(static_cast<int8_t>(random.below(8) - 4));
      }
      const bool with_zeros = f.zero_point;
      std::vector<uint8_t> wanted(static_cast<size_t>(a.n * ceil_div(a.k * f.bits, 8)));
      a.w = w.data();
      a.divisor = divisor.data();
      a.zero_points = with_zeros ? reinterpret_cast<const int8_t*>(zeros.data()) : nullptr;
      a.codes = wanted.data();
      CHECK_EQ(encode(a, nullptr), LOWBIT_OK);
      const emulator::buffer<uint8_t> device_w(w), device_divisor(divisor), device_zeros(zeros);
      emulator::buffer<uint8_t> codes(wanted.size());
      a.w = device_w.data();
      a.divisor = device_divisor.data();
      if (with_zeros) a.zero_points = reinterpret_cast<const int8_t*>(device_zeros.data());
      a.codes = codes.data();
      CHECK_RAN(sm80::encode(a, nullptr));
      CHECK(codes.values() == wanted, "%s from %s by %s", format, dtype_name(w_dtype), dtype_name(a.divisor_dtype));
    }
  }
}

// Weights move once, so these kernels load and store their packed side whole and are bounded, not tuned, on the other.
TEST(packing_accesses) {
  emulator::clear_access_counts();
  random_source random(6);
  for (const char* format : {"int4", "int8", "int2"}) {
    weight_options o{format, 128, 1024};
    o.group_k = 128;
    o.zero_point = true;
    const problem p(random_weight(o, random), random);
    const std::vector<uint8_t> host = packed_on_host(p);
    const emulator::buffer<uint8_t> packed(host);
    emulator::buffer<uint8_t> again(host.size()), out(128 * 1024 * 2), codes(p.w.codes.size()),
        scales(p.w.scales.size()), zero_points(p.zero_bytes), none(1);
    CHECK_RAN(sm80::unpack(p.device, packed.data(),
                           {codes.data(), scales.data(), reinterpret_cast<int8_t*>(zero_points.data()), none.data(),
                            none.data(), none.data()},
                           nullptr));
    CHECK_RAN(sm80::dequantize_packed(p.device, packed.data(), out.data(), LOWBIT_BF16, nullptr));
    CHECK_RAN(sm80::dequantize(p.device, out.data(), LOWBIT_BF16, nullptr));
    CHECK_RAN(sm80::pack(p.device, again.data(), nullptr));
  }
  emulator::print_access_counts();
  const std::string worst = emulator::worse_than(1.0, 8.0);
  CHECK(worst.empty(), "%s", worst.c_str());
}

}  // namespace lowbit::cuda
