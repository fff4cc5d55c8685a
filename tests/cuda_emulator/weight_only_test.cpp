// Every row of the sm80 weight_only table through the emulator: shapes from its own tile, against sums in double from
// canonical codes; every code of every format to the bit; a row's bits for every m, tile and device.
#include <algorithm>

#include "cuda/common/launch.h"
#include "cuda/sm80/weight_only_host.h"
#include "emulator/emulator.h"
#include "support.h"

namespace lowbit::cuda::sm80 {
extern const kernel_row weight_only_rows[];
extern const int num_weight_only_rows;
}  // namespace lowbit::cuda::sm80

namespace {

using lowbit::cuda::bf16_t;
using lowbit::cuda::device_info;
using lowbit::cuda::f16_t;
using lowbit::cuda::kernel_row;

// Many SMs: K is split; one: it is not. Two stages fit into the small one's shared memory, five into the large one's,
// two and sums into the third's.
constexpr device_info many_sms{90, 132, 232448, 50 << 20}, one_sm{86, 1, 101376, 6 << 20},
    one_large_sm{80, 1, 166912, 40 << 20};

template <class Visit>
void for_each_row(const Visit& visit) {
  for (int i = 0; i < lowbit::cuda::sm80::num_weight_only_rows; ++i) visit(lowbit::cuda::sm80::weight_only_rows[i]);
}

// Formats that support.h makes weights of: one level of scales, no minima.
template <class Visit>
void for_each_format(const Visit& visit) {
  for (int i = 0; i < lowbit::num_formats(); ++i) {
    const lowbit::format_row& f = lowbit::format_at(i);
    if ((f.bits == 2 || f.bits == 4 || f.bits == 8) && !f.minimum && !f.two_levels()) visit(f);
  }
}

// A value as a decoder gives it: rounded to the bits of a dtype, which holds all but those of tables.
double rounded_to(int dtype, double x) {
  int exponent = 0;
  const double fraction = std::frexp(x, &exponent), digits = dtype == LOWBIT_BF16 ? 256 : 2048;
  return std::ldexp(std::nearbyint(fraction * digits) / digits, exponent);
}

// A problem with its device memory.
struct product {
  const canonical_weight& w;
  int64_t m, x_stride, y_stride;
  int x_dtype, y_dtype, bias_dtype;
  bool has_bias, shifted;
  exact_bytes packed, x, bias;

  product(const canonical_weight& weight, int64_t rows, int activations, random_source& random)
      : w(weight),
        m(rows),
        x_stride(weight.k() + random.of({0, 0, 1, 8})),
        y_stride(weight.n() + random.of({0, 0, 1, 4})),
        x_dtype(activations),
        y_dtype(random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16})),
        bias_dtype(random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16})),
        has_bias(random.below(2)),
        shifted(random.below(4) == 0),
        packed(static_cast<size_t>(lowbit::fragment_offsets_of(weight.description).total)) {
    CHECK_EQ(lowbit::pack_fragments(w.description, packed.data(), packed.size(), nullptr), LOWBIT_OK);
    std::vector<float> values(static_cast<size_t>((m - 1) * x_stride + w.k())), b(static_cast<size_t>(w.n()));
    for (float& v : values) v = random.uniform(-2, 2);
    for (float& v : b) v = random.uniform(-4, 4);
    x = numbers(values, x_dtype);
    bias = numbers(b, bias_dtype);
  }

  double x_at(int64_t i, int64_t k) const {
    return static_cast<double>(lowbit::load_as_f32(x.data(), i * x_stride + k, x_dtype));
  }

  // y's bytes; those between rows must stay unwritten. Empty: it does not fit into the device's shared memory.
  std::vector<uint8_t> run(const kernel_row& row, const device_info& device, uint32_t seed = 0) const {
    const size_t shift = shifted ? 2 : 0;  // x not on a 16-byte boundary
    emulator::buffer<uint8_t> device_w(packed.bytes(), packed.size());
    emulator::buffer<uint8_t> device_x(x.size() + shift), device_bias(bias.bytes(), bias.size());
    emulator::upload(device_x.data() + shift, x.data(), x.size());
    const size_t y_size = static_cast<size_t>(lowbit::dtype_bytes(y_dtype));
    emulator::buffer<uint8_t> y(static_cast<size_t>((m - 1) * y_stride + w.n()) * y_size);

    lowbit::cuda::gemm_problem p{};
    const lowbit::fragment_offsets at = lowbit::fragment_offsets_of(w.description);
    p.w = {lowbit::fragment_shape_of(w.description),
           &w.format(),
           device_w.data(),
           at.codes,
           at.scales,
           at.zero_points,
           at.column_sums,
           w.description.scale_dtype};
    p.m = m;
    p.x = device_x.data() + shift;
    p.x_dtype = x_dtype;
    p.x_stride = x_stride;
    p.bias = has_bias ? device_bias.data() : nullptr;
    p.bias_dtype = bias_dtype;
    p.y = y.data();
    p.y_dtype = y_dtype;
    p.y_stride = y_stride;
    const char* reason = row.refuses(p, device);
    if (reason && std::strstr(reason, "shared memory")) return {};
    const emulator::buffer<uint8_t> workspace(static_cast<size_t>(row.workspace(p, device)) + 1);
    p.workspace = workspace.data();

    emulator::options options;
    options.seed = seed;
    options.arch = device.arch;
    options.races = races;
    const emulator::with with(options);
    CHECK(row.run(p, device) == LOWBIT_OK, "%s: %s", describe(row).c_str(), lowbit_last_error());
    std::vector<uint8_t> out(y.size());
    for (int64_t i = 0; i < m; ++i) {
      const size_t first = static_cast<size_t>(i * y_stride) * y_size, bytes = static_cast<size_t>(w.n()) * y_size;
      if (emulator::failure().empty()) emulator::download(out.data() + first, y.data() + first, bytes);
      for (size_t j = first + bytes; j < first + static_cast<size_t>(y_stride) * y_size && j < y.size(); ++j)
        CHECK(!emulator::written(y.data() + j, 1), "%s wrote between rows of y", describe(row).c_str());
    }
    CHECK(emulator::failure().empty(), "%s: %s", describe(row).c_str(), emulator::failure().c_str());
    return out;
  }

  std::string describe(const kernel_row& row) const {
    char text[200];
    std::snprintf(text, sizeof text, "%s, %s %lld x %lld x %lld, group %lld x %lld, scales %s%s, x %s%s, y %s",
                  row.name, w.format().name, static_cast<long long>(m), static_cast<long long>(w.n()),
                  static_cast<long long>(w.k()), static_cast<long long>(w.description.group_n),
                  static_cast<long long>(w.description.group_k), lowbit::dtype_name(w.description.scale_dtype),
                  w.zero_points.empty() ? "" : " and zero points", lowbit::dtype_name(x_dtype),
                  shifted ? " shifted" : "", lowbit::dtype_name(y_dtype));
    return text;
  }

  bool races = true;
};

// |y - exact| as cuda/contract.h bounds it.
void check_against_double(const kernel_row& row, const product& c, const std::vector<uint8_t>& y) {
  const canonical_weight& w = c.w;
  const bool table = lowbit::cuda::kind_of(w.format()) == lowbit::cuda::code_kind::table;
  const double rounding = !table ? 0 : c.x_dtype == LOWBIT_BF16 ? 0x1p-8 : 0x1p-11;
  const double relative = static_cast<double>(w.k() + 64) * 0x1p-23 + rounding * 1.01;
  const double global = static_cast<double>(w.description.global_scale);
  for (int64_t n = 0; n < w.n(); ++n) {
    for (int64_t m = 0; m < c.m; ++m) {
      double sum = 0, absolute = 0;
      for (int64_t k = 0; k < w.k(); ++k) {
        const double x = c.x_at(m, k), product = x * w.value(n, k);
        sum += product;
        absolute += std::fabs(product);
      }
      const double bias = c.has_bias ? static_cast<double>(lowbit::load_as_f32(c.bias.data(), n, c.bias_dtype)) : 0;
      const double exact = sum * global + bias;
      double most = (relative * absolute + static_cast<double>(w.groups() + 1) * 0x1p-135) * global;
      const double magnitude = std::fabs(exact) + most;
      most += 0x1p-22 * magnitude + (c.y_dtype == LOWBIT_F16    ? magnitude * 0x1p-11 + 0x1p-25
                                     : c.y_dtype == LOWBIT_BF16 ? magnitude * 0x1p-8
                                                                : 0);
      const double got = static_cast<double>(lowbit::load_as_f32(y.data(), m * c.y_stride + n, c.y_dtype));
      const bool overflows = c.y_dtype == LOWBIT_F16 && magnitude >= 65504;
      CHECK(overflows || std::fabs(got - exact) <= most, "%s [%lld, %lld]: %.9g, not %.9g +- %.3g",
            c.describe(row).c_str(), static_cast<long long>(m), static_cast<long long>(n), got, exact, most);
    }
  }
}

weight_options options_of(const lowbit::format_row& f, int64_t n, int64_t k, random_source& random) {
  weight_options o{f.name, n, f.block_k ? lowbit::round_up(k, f.block_k) : k};
  o.group_n = random.of({1, 1, 3, 128});
  o.group_k = random.of<int64_t>({16, 32, 64, 128, 128, 256, 48, 100, 7, k, k});
  o.scale_dtype = random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16});
  o.zero_point = random.below(2);
  return o;
}

}  // namespace

// x is the unit matrix, so y is W as the kernel decodes it.
TEST(every_code_decodes_as_the_contract_says) {
  random_source random(51);
  const kernel_row& row = lowbit::cuda::sm80::weight_only_rows[0];
  for_each_format([&](const lowbit::format_row& f) {
    for (const int x_dtype : {LOWBIT_BF16, LOWBIT_F16}) {
      for (const bool grouped : {true, false}) {
        constexpr int64_t n = 48, k = 160;
        weight_options o{f.name, n, k};
        o.group_k = grouped ? 32 : k;
        o.scale_dtype = random.of({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16});
        o.zero_point = true;
        canonical_weight w = random_weight(o, random);
        unsigned code = 0;  // every one of them, and each next to others
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < k; ++j, ++code) {
            while (!std::isfinite(f.values[code % (1u << f.bits)])) ++code;
            w.set_code(i, j, code % (1u << f.bits));
          }
        w.description.global_scale = 1;
        product c(w, k, x_dtype, random);
        c.y_dtype = LOWBIT_F32;
        c.has_bias = false;
        std::vector<float> unit(static_cast<size_t>((k - 1) * c.x_stride + k));
        for (int64_t i = 0; i < k; ++i) unit[static_cast<size_t>(i * c.x_stride + i)] = 1;
        c.x = numbers(unit, x_dtype);
        const std::vector<uint8_t> y = c.run(row, many_sms);
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j < k; ++j) {
            const double code_value =
                rounded_to(x_dtype, static_cast<double>(f.values[w.code(i, j)]) - w.zero_point(i, j));
            const float wanted = static_cast<float>(code_value * static_cast<double>(w.scale(i, j)));
            const float got = lowbit::load_as_f32(y.data(), j * c.y_stride + i, LOWBIT_F32);
            CHECK(got == wanted, "%s [%lld, %lld], code %u: %.9g, not %.9g", c.describe(row).c_str(),
                  static_cast<long long>(i), static_cast<long long>(j), w.code(i, j), static_cast<double>(got),
                  static_cast<double>(wanted));
          }
        }
      }
    }
  });
}

struct tile_arguments {
  const uint8_t* codes;
  uint32_t* registers;  // [128 columns / 16][4][32 lanes]
};

template <class T, class Codes>
LOWBIT_KERNEL(32, 1)
void decode_kernel(const tile_arguments p) {
  namespace cuda = lowbit::cuda;
  constexpr int tile_k = 256 / Codes::bits;
  const float bias = Codes::template bias<T> + (1 << (Codes::bits - 1));
  const uint32_t offset[2] = {cuda::pack2<T>(-bias, -bias), cuda::pack2<T>(1 - bias, 1 - bias)};  // rows g + 8: 1 more
  for (int k16 = 0; k16 < 8; ++k16) {
    const auto w = cuda::global_load<cuda::u32x4>(p.codes + k16 * 16 / tile_k * 2048 + cuda::lane_index() * 16);
    uint32_t a[4];
    cuda::decode_values<T, Codes>(a, w, k16 % (tile_k / 16), offset, cuda::decode_constants{});
    for (int i = 0; i < 4; ++i)
      cuda::global_store<uint32_t>(p.registers + (k16 * 4 + i) * 32 + cuda::lane_index(), a[i]);
  }
}

template <class T, class Codes>
void check_integer_tile(int dtype) {
  random_source random(55);
  const auto s = lowbit::fragment_shape::of(64, 128, 1, 128, Codes::bits);
  std::vector<uint8_t> bytes(static_cast<size_t>(s.code_bytes()));
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.below(256));
  const emulator::buffer<uint8_t> codes(bytes);
  const emulator::buffer<uint32_t> registers(8 * 4 * 32);
  CHECK_EQ((lowbit::cuda::launch<decode_kernel<T, Codes>>({.grid_x = 1, .threads = 32},
                                                          tile_arguments{codes.data(), registers.data()})),
           LOWBIT_OK);
  const std::vector<uint32_t> got = registers.values();
  for (int64_t k16 = 0; k16 < 8; ++k16)
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t lane = 0; lane < 32; ++lane)
        for (int64_t c = 0; c < 2; ++c) {
          const int64_t bit = s.code_bit(lane / 4 + 8 * (i % 2), k16 * 16 + lane % 4 * 2 + 8 * (i / 2) + c);
          const int code = bytes[static_cast<size_t>(bit / 8)] >> bit % 8 & ((1 << Codes::bits) - 1);
          const float wanted = static_cast<float>(code - (1 << (Codes::bits - 1)) + i % 2);
          const uint16_t half = static_cast<uint16_t>(got[static_cast<size_t>((k16 * 4 + i) * 32 + lane)] >> c * 16);
          CHECK_EQ(dtype == LOWBIT_BF16 ? lowbit::bf16_to_f32(half) : lowbit::f16_to_f32(half), wanted);
        }
}

TEST(integers_of_2_and_4_bits_become_the_registers_of_an_mma) {
  using lowbit::cuda::integer_codes;
  check_integer_tile<bf16_t, integer_codes<2>>(LOWBIT_BF16);
  check_integer_tile<f16_t, integer_codes<2>>(LOWBIT_F16);
  check_integer_tile<bf16_t, integer_codes<4>>(LOWBIT_BF16);
  check_integer_tile<f16_t, integer_codes<4>>(LOWBIT_F16);
}

TEST(products_are_within_the_stated_bound) {
  for_each_row([](const kernel_row& row) {
    random_source random(52);
    int turn = 0;
    for_each_format([&](const lowbit::format_row& f) {
      for (int i = 0; i < 4; ++i, ++turn) {
        const int64_t m = random.of<int64_t>({1, 2, row.mr - 1, row.mr, row.mr + 1});
        const int64_t n = random.of<int64_t>({1, 17, 63, 64, row.nr / 2 + 1, row.nr + 3});
        const int64_t k = random.of<int64_t>({1, 33, 127, 128, 200, 300});
        canonical_weight w = random_weight(options_of(f, n, k, random), random);
        const product c(w, m, turn % 2 ? LOWBIT_BF16 : LOWBIT_F16, random);
        check_against_double(row, c, c.run(row, turn % 3 ? many_sms : one_sm, static_cast<uint32_t>(turn % 3)));
      }
    });
  });
}

// Scales that fp16 x has no numbers for: they multiply sums.
TEST(fp16_x_limits_no_scale) {
  random_source random(56);
  for (const char* format : {"int4", "int8", "fp8_e4m3", "mxfp4", "nf4"}) {
    const lowbit::format_row& f = lowbit::format_at(lowbit::find_format(format));
    weight_options o{format, 64, 256};
    o.group_k = f.block_k ? f.block_k : 64;
    o.scale_dtype = LOWBIT_F32;
    canonical_weight w = random_weight(o, random);
    for (int64_t i = 0; i < w.num_scales(); ++i) {
      if (w.description.scale_dtype == LOWBIT_E8M0)
        w.scales[static_cast<size_t>(i)] = static_cast<uint8_t>(i % 2 ? 127 + 40 : 127 - 40);
      else
        w.set_scale(i, i % 2 ? 1e12f : 1e-12f);
    }
    product c(w, 3, LOWBIT_F16, random);
    c.y_dtype = LOWBIT_F32;
    for_each_row([&](const kernel_row& row) { check_against_double(row, c, c.run(row, many_sms)); });
  }
}

// The same row of x among others, in every tile, K split over CTAs and not, loads in any order that PTX allows.
TEST(a_row_of_y_has_the_same_bits_for_every_m) {
  random_source random(53);
  int turn = 0;
  for (const char* format : {"int4", "int8", "fp8_e4m3", "nvfp4", "nf4"}) {
    const lowbit::format_row& f = lowbit::format_at(lowbit::find_format(format));
    weight_options o{format, 70, 1280};  // 10 steps, two slices
    o.group_k = f.block_k ? f.block_k : random.of<int64_t>({128, 1280, 96});
    o.zero_point = true;
    canonical_weight w = random_weight(o, random);
    const int x_dtype = ++turn % 2 ? LOWBIT_BF16 : LOWBIT_F16;
    product most(w, 130, x_dtype, random);
    most.y_dtype = LOWBIT_F32;
    const kernel_row& first = lowbit::cuda::sm80::weight_only_rows[0];
    const std::vector<uint8_t> wanted = most.run(first, many_sms);
    check_against_double(first, most, wanted);
    for_each_row([&](const kernel_row& row) {
      for (const device_info& device : {many_sms, one_sm, one_large_sm}) {
        const int64_t ms[] = {1, row.mr, row.mr + 1, 130};
        for (const int64_t m : ms) {
          if (m > 130 || (m == 130 && row.mr < 128)) continue;
          product c(w, m, x_dtype, random);
          c.y_dtype = LOWBIT_F32;
          c.has_bias = most.has_bias;
          c.bias_dtype = most.bias_dtype;
          c.bias = exact_bytes(most.bias.data(), most.bias.size());
          c.x_stride = most.x_stride;
          const int64_t skipped = 130 - m;  // the last rows
          c.x = exact_bytes(most.x.bytes() + skipped * c.x_stride * 2,
                            most.x.size() - static_cast<size_t>(skipped * c.x_stride) * 2);
          const std::vector<uint8_t> y = c.run(row, device, static_cast<uint32_t>(++turn % 3));
          if (y.empty()) {
            CHECK(device.arch == 86 || f.bits == 8, "%s does not fit", c.describe(row).c_str());
            continue;
          }
          for (int64_t i = 0; i < m; ++i)
            CHECK(!std::memcmp(y.data() + i * c.y_stride * 4, wanted.data() + (skipped + i) * most.y_stride * 4,
                               static_cast<size_t>(w.n()) * 4),
                  "%s: row %lld of %lld has other bits", c.describe(row).c_str(), static_cast<long long>(i),
                  static_cast<long long>(m));
        }
      }
    });
  }
}

// Aligned problems: shared memory without conflicts but where a row's pieces are fewer than a warp, and whole sectors.
TEST(accesses_stay_within_their_bounds) {
  emulator::clear_access_counts();
  random_source random(54);
  for_each_row([&](const kernel_row& row) {
    for (const char* format : {"int4", "int8", "nvfp4"}) {
      weight_options o{format, row.nr, 512};
      const canonical_weight w = random_weight(o, random);
      product c(w, row.mr, LOWBIT_BF16, random);
      c.x_stride = c.w.k();
      c.y_stride = c.w.n();
      c.shifted = false;
      std::vector<float> values(static_cast<size_t>(c.m * c.x_stride), 1.0f);
      c.x = numbers(values, LOWBIT_BF16);
      c.run(row, many_sms);
    }
  });
  emulator::print_access_counts();
  // A site that is a twentieth of its kernel's accesses has no conflicts; all of them together have few.
  const auto shared = [](const emulator::access_count& c) {
    return c.kind != emulator::global_read && c.kind != emulator::global_write;
  };
  const std::vector<emulator::access_count> counts = emulator::access_counts();
  CHECK(!counts.empty(), "nothing was counted");
  for (const emulator::access_count& site : counts) {
    if (site.kernel.find("weight_only") == std::string::npos) continue;
    uint64_t moved = 0, needed = 0;
    for (const emulator::access_count& c : counts) {
      if (c.kernel != site.kernel || shared(c) != shared(site)) continue;
      moved += c.moved;
      needed += c.needed;
    }
    CHECK(site.needed * 20 < needed || site.ratio() <= 1.01, "%s, %s: %.2f times what is needed", site.kernel.c_str(),
          site.place.c_str(), site.ratio());
    CHECK(static_cast<double>(moved) <= 1.06 * static_cast<double>(needed), "%s moves %llu, of which %llu are needed",
          site.kernel.c_str(), static_cast<unsigned long long>(moved), static_cast<unsigned long long>(needed));
  }
}
