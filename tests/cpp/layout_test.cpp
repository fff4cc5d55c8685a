// The packed layout: its index functions, and that packing loses nothing.
#include "layout/packed.h"

#include <algorithm>

#include "support.h"

namespace {

constexpr const char* all_formats[] = {
    "int4",    "int8", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "mxfp4",    "mxfp8",      "nvfp4",      "nf4",    "int2",
    "ternary", "int3", "int5",     "int6",     "fp6_e2m3", "fp6_e3m2", "mxfp6_e2m3", "mxfp6_e3m2", "nf4_dq", "q4_1",
    "q5_1",    "q2_k", "q3_k",     "q4_k",     "q5_k",     "q6_k",     "iq4_nl",     "tq2_0"};

// Shapes around panels of 16 rows and lines of 64 and 128 columns, by every kind of group.
template <class Visit>
void for_each_shape(const Visit& visit) {
  for (const int64_t n : {1, 7, 15, 16, 17, 33})
    for (const int64_t k : {1, 2, 63, 64, 65, 127, 128, 129, 200, 517})
      for (const int64_t group_k : {int64_t{1}, int64_t{7}, int64_t{16}, int64_t{24}, int64_t{32}, int64_t{48},
                                    int64_t{64}, int64_t{100}, int64_t{128}, k, k + 300})
        visit(n, k, group_k);
}

weight_options options_of(const char* format, int64_t n, int64_t k, int64_t group_k, int turn) {
  const lowbit::format_row& f = lowbit::format_at(lowbit::find_format(format));
  weight_options o{format, n, f.block_k ? lowbit::round_up(k, f.block_k) : k};
  const int64_t group_n[] = {1, 3, 16, 128};
  const lowbit_dtype scale_dtypes[] = {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16};
  o.group_n = group_n[turn % 4];
  o.group_k = group_k;
  o.scale_dtype = scale_dtypes[turn % 3];
  o.zero_point = turn % 5 < 2;
  return o;
}

}  // namespace

TEST(indices_are_a_bijection) {
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    for_each_shape([&](int64_t n, int64_t k, int64_t group_k) {
      const auto s = lowbit::packed_shape::of(n, k, 1, group_k, bits);
      CHECK(s.k_packed == s.blocks * s.block_k && s.panels * 16 >= n && (s.panels - 1) * 16 < n);
      CHECK_EQ(s.code_bytes() * 8, s.panels * 16 * s.k_packed * bits);
      // one count for each bit of the panels
      std::vector<uint8_t> used(static_cast<size_t>(s.code_bytes() * 8));
      for (int64_t row = 0; row < n; ++row) {
        for (int64_t j = 0; j < k; ++j) {
          const int64_t column = s.column(j);
          CHECK_EQ(s.group_of_column(column), j / group_k);
          for (const lowbit::code_plane& plane : {s.low, s.high}) {
            if (!plane.bits) continue;
            const int64_t at = s.plane_offset(plane, row, column);
            CHECK(column >= 0 && column < s.k_packed && at >= 0 && at < s.code_bytes(),
                  "column %lld of %lld x %lld by %lld", static_cast<long long>(j), static_cast<long long>(n),
                  static_cast<long long>(k), static_cast<long long>(group_k));
            for (int i = 0; i < plane.bits; ++i) ++used[static_cast<size_t>(8 * at + s.plane_shift(plane, column) + i)];
          }
          if (s.k_in_order()) CHECK_EQ(column, j);
          CHECK_EQ(column / s.unit * s.unit / s.span, (column / s.unit * s.unit + s.unit - 1) / s.span);
        }
      }
      CHECK_EQ(std::count(used.begin(), used.end(), 1), n * k * bits);
      CHECK_EQ(std::count(used.begin(), used.end(), 0), s.code_bytes() * 8 - n * k * bits);
      std::vector<uint8_t> scales(static_cast<size_t>(s.num_scales()));
      for (int64_t row = 0; row < n; ++row)
        for (int64_t g = 0; g < s.groups; ++g) ++scales[static_cast<size_t>(s.scale_index(row, g))];
      CHECK_EQ(std::count(scales.begin(), scales.end(), 1), n * s.groups);
    });
  }
}

// docs/packed_layout.md: which line of a block a column's bits are in, and where in its byte.
TEST(packed_codes_lie_where_the_picture_says) {
  struct picture {
    const char* format;
    int64_t depth, lines;
    struct {
      int bits;
      int64_t line;  // the plane's first
    } planes[2];
  };
  random_source random(3);
  for (const picture& p : {picture{"int8", 64, 1, {{8, 0}, {0, 0}}}, picture{"int4", 128, 1, {{4, 0}, {0, 0}}},
                           picture{"int2", 256, 1, {{2, 0}, {0, 0}}}, picture{"int3", 512, 3, {{2, 0}, {1, 2}}},
                           picture{"int5", 512, 5, {{4, 0}, {1, 4}}}, picture{"int6", 256, 3, {{4, 0}, {2, 2}}}}) {
    const canonical_weight w = random_weight({p.format, 33, 700, 1, 128, LOWBIT_F32, false}, random);
    const exact_bytes packed = w.pack();
    const int64_t blocks = ceil_div(768, p.depth);  // 6 groups of 128
    for (int64_t row = 0; row < 33; ++row) {
      for (int64_t j = 0; j < 700; ++j) {
        unsigned code = 0;
        int first = 0;
        for (const auto& plane : p.planes) {
          if (!plane.bits) continue;
          const int64_t per_line = 512 / plane.bits, line = plane.line + j % p.depth / per_line;
          const uint8_t byte =
              packed
                  .bytes()[256 + (((row / 16 * blocks + j / p.depth) * p.lines + line) * 16 + row % 16) * 64 + j % 64];
          code |= (byte >> (j % per_line / 64 * plane.bits) & ((1u << plane.bits) - 1)) << first;
          first += plane.bits;
        }
        if (w.format().bits == 8) code ^= 0x80;
        CHECK(code == w.code(row, j), "%s [%lld, %lld]", p.format, static_cast<long long>(row),
              static_cast<long long>(j));
      }
    }
  }
}

// Kernels multiply padding by activations of 0: under the largest scales a code that stands for much would be infinite.
TEST(columns_that_pad_decode_to_the_least_there_is) {
  random_source random(7);
  int turn = 0;
  for (const char* format : all_formats) {
    for_each_shape([&](int64_t n, int64_t k, int64_t group_k) {
      if (++turn % (sanitized ? 41 : 7)) return;
      const canonical_weight w = random_weight(options_of(format, n, k, group_k, turn), random);
      const lowbit::format_row& f = w.format();
      float least = INFINITY;
      for (unsigned c = 0; c < 1u << f.bits; ++c) least = std::fmin(least, std::fabs(f.values[c]));
      const exact_bytes packed = w.pack();
      lowbit::packed_view v;
      CHECK_EQ(lowbit::view_packed(packed.data(), packed.size(), &v), LOWBIT_OK);
      for (int64_t column = 0; column < v.shape.k_packed; ++column) {
        const int64_t g = v.shape.group_of_column(column), inside = column - g * v.shape.span;
        if (inside < w.description.group_k && g * w.description.group_k + inside < w.k()) continue;
        for (int64_t row = 0; row < n; ++row) {
          const float value = f.values[v.code(row, column)] - v.zero_point(row, g);
          CHECK(std::fabs(value) == least, "%s [%lld, packed column %lld] is %g", format, static_cast<long long>(row),
                static_cast<long long>(column), static_cast<double>(value));
        }
      }
    });
  }
}

TEST(unpacking_inverts_packing) {
  random_source random(4);
  int turn = 0;
  for (const char* format : all_formats) {
    for_each_shape([&](int64_t n, int64_t k, int64_t group_k) {
      if (++turn % (sanitized ? 41 : 5)) return;
      canonical_weight w = random_weight(options_of(format, n, k, group_k, turn), random);
      thread_pool threads(turn % 3 + 1);
      const exact_bytes packed = w.pack(&threads.parallel);
      exact_bytes codes(w.codes.size()), scales(w.scales.size()), zeros(w.zero_points.size());
      exact_bytes mins(w.mins.size()), super_scales(w.super_scales.size()), super_mins(w.super_mins.size());
      const lowbit_weight_arrays arrays{
          codes.data(), scales.data(),       w.zero_points.empty() ? nullptr : reinterpret_cast<int8_t*>(zeros.data()),
          mins.data(),  super_scales.data(), super_mins.data()};
      CHECK_EQ(lowbit_unpack(packed.data(), packed.size(), &arrays, &threads.parallel), LOWBIT_OK);
      const int64_t last = w.k() * w.format().bits % 8;  // what lies beyond the row's end is no code
      for (int64_t i = 0; i < n && last; ++i)
        w.codes[static_cast<size_t>((i + 1) * w.row_bytes() - 1)] &= static_cast<uint8_t>((1 << last) - 1);
      const auto same = [](const exact_bytes& out, const auto& in) {
        return in.empty() || !std::memcmp(out.data(), in.data(), in.size());
      };
      const bool equal = same(codes, w.codes) && same(scales, w.scales) && same(zeros, w.zero_points) &&
                         same(mins, w.mins) && same(super_scales, w.super_scales) && same(super_mins, w.super_mins);
      CHECK(equal, "%s %lld x %lld, group %lld", format, static_cast<long long>(n), static_cast<long long>(w.k()),
            static_cast<long long>(group_k));
      lowbit_weight d;
      CHECK_EQ(lowbit_packed_describe(packed.data(), packed.size(), &d), LOWBIT_OK);
      CHECK(d.format == w.description.format && d.n == n && d.k == w.k() && d.group_n == w.description.group_n &&
            d.group_k == w.description.group_k && d.scale_dtype == w.description.scale_dtype &&
            d.global_scale == w.description.global_scale && d.scale_offset == w.description.scale_offset &&
            !d.zero_points == w.zero_points.empty() && !d.codes);
    });
  }
}

TEST(dequantizing_is_the_definition_packed_or_not) {
  random_source random(5);
  int turn = 0;
  for (const char* format : all_formats) {
    for_each_shape([&](int64_t n, int64_t k, int64_t group_k) {
      if (++turn % (sanitized ? 23 : 5)) return;
      const canonical_weight w = random_weight(options_of(format, n, k, group_k, turn), random);
      const exact_bytes packed = w.pack();
      for (const lowbit_dtype dtype : {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16}) {
        const size_t bytes = static_cast<size_t>(n * w.k() * lowbit::dtype_bytes(dtype));
        exact_bytes direct(bytes), from_packed(bytes);
        thread_pool threads(2);
        CHECK_EQ(lowbit_dequantize(&w.description, direct.data(), dtype, &threads.parallel), LOWBIT_OK);
        CHECK_EQ(lowbit_dequantize_packed(packed.data(), packed.size(), from_packed.data(), dtype, nullptr), LOWBIT_OK);
        CHECK(!std::memcmp(direct.data(), from_packed.data(), bytes), "%s to %s", format, lowbit::dtype_name(dtype));
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t j = 0; j < w.k(); ++j) {
            const float once = static_cast<float>(w.value(i, j)) * w.description.global_scale;
            float wanted;
            lowbit::store_from_f32(&wanted, 0, dtype, once);
            wanted = lowbit::load_as_f32(&wanted, 0, dtype);
            const float got = lowbit::load_as_f32(direct.data(), i * w.k() + j, dtype);
            CHECK(got == wanted, "%s [%lld, %lld] is %.9g, not %.9g", format, static_cast<long long>(i),
                  static_cast<long long>(j), static_cast<double>(got), static_cast<double>(wanted));
          }
        }
      }
    });
  }
}

// Integer formats by rounding in double; the others by their encoder, which formats_test checks.
TEST(encoding_a_matrix_encodes_each_element) {
  random_source random(6);
  int turn = 0;
  for (const char* format : all_formats) {
    for_each_shape([&](int64_t n, int64_t k, int64_t group_k) {
      if (++turn % (sanitized ? 29 : 7)) return;
      const lowbit_dtype dtypes[] = {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16};
      const lowbit_dtype w_dtype = dtypes[turn % 3], divisor_dtype = dtypes[turn / 3 % 3];
      const canonical_weight w = random_weight(options_of(format, n, k, group_k, turn), random);
      const lowbit::format_row& f = w.format();
      k = w.k();
      std::vector<float> values(static_cast<size_t>(n * k)), divisors(static_cast<size_t>(w.num_scales()));
      for (float& v : values) v = random.uniform(-1, 1);
      for (float& v : divisors) v = random.uniform(0.05f, 0.2f) / (f.bits == 8 ? 16.0f : 1.0f);
      const exact_bytes x = numbers(values, w_dtype), d = numbers(divisors, divisor_dtype);
      exact_bytes codes(w.codes.size());
      const lowbit_encode_args a{w.description.format,
                                 n,
                                 k,
                                 w.description.group_n,
                                 w.description.group_k,
                                 x.data(),
                                 w_dtype,
                                 d.data(),
                                 divisor_dtype,
                                 w.description.zero_points,
                                 codes.data()};
      thread_pool threads(turn % 2 + 1);
      CHECK_EQ(lowbit_encode(&a, &threads.parallel), LOWBIT_OK);
      const lowbit::encoder nearest(f);
      const lowbit_dtype wider = w_dtype == divisor_dtype ? w_dtype : LOWBIT_F32;
      const auto round = [&](float v) {
        float out;
        lowbit::store_from_f32(&out, 0, wider, v);
        return lowbit::load_as_f32(&out, 0, wider);
      };
      canonical_weight got = w;
      std::memcpy(got.codes.data(), codes.data(), codes.size());
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < k; ++j) {
          float v = round(lowbit::load_as_f32(x.data(), i * k + j, w_dtype) /
                          lowbit::load_as_f32(d.data(), w.scale_index(i, j), divisor_dtype));
          if (w.zero_point(i, j)) v = round(v + static_cast<float>(w.zero_point(i, j)));
          unsigned wanted = nearest(v);
          if (f.integer()) {
            const double low = f.integer_low(), high = f.integer_high();
            const int code = static_cast<int>(std::fmin(std::fmax(std::nearbyint(static_cast<double>(v)), low), high));
            wanted = static_cast<unsigned>(f.bits < 8 ? code + f.integer_offset : code & 255);
          }
          CHECK(got.code(i, j) == wanted, "%s of %.9g is %u, not %u", format, static_cast<double>(v), got.code(i, j),
                wanted);
        }
      }
    });
  }
}
