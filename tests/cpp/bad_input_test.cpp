// What must be refused with a sentence: corrupt packed weights, and numbers that cannot be.
#include <limits>

#include "support.h"

namespace {

// Every call that reads packed bytes; the outputs have room for the weight that was packed.
struct packed_reader {
  std::vector<float> out;
  std::vector<uint8_t> codes, scales;
  std::vector<int8_t> zeros;

  explicit packed_reader(const canonical_weight& w)
      : out(static_cast<size_t>(w.n() * w.k())),
        codes(w.codes.size()),
        scales(w.scales.size()),
        zeros(static_cast<size_t>(w.num_scales())) {}

  void check_refused(const void* packed, size_t bytes, const char* what, int64_t at) {
    lowbit_weight d;
    std::vector<float> x(64);
    lowbit_gemm_args a{};
    a.m = 1;
    a.x = x.data();
    a.packed = packed;
    a.packed_bytes = bytes;
    a.y = out.data();
    const lowbit_weight_arrays arrays{codes.data(), scales.data(), zeros.data(), nullptr, nullptr, nullptr};
    const lowbit_status got[] = {
        lowbit_packed_describe(packed, bytes, &d),
        lowbit_unpack(packed, bytes, &arrays, nullptr),
        lowbit_dequantize_packed(packed, bytes, out.data(), LOWBIT_F32, nullptr),
        lowbit_gemm(&a),
    };
    for (const lowbit_status status : got)
      CHECK(status == LOWBIT_INVALID_VALUE || status == LOWBIT_INVALID_TYPE, "%s %lld was taken", what,
            static_cast<long long>(at));
    CHECK(*lowbit_last_error(), "no sentence");
  }
};

void refresh_checksum(lowbit::packed_header& h) {
  uint64_t hash = 14695981039346656037u;
  for (size_t i = 0; i < offsetof(lowbit::packed_header, checksum); ++i)
    hash = (hash ^ reinterpret_cast<const uint8_t*>(&h)[i]) * 1099511628211u;
  h.checksum = hash;
}

canonical_weight small_weight(const char* format, bool zero_point = false) {
  random_source random(7);
  return random_weight({format, 5, 64, 1, 32, LOWBIT_F32, zero_point}, random);
}

lowbit_status pack_status(const lowbit_weight& w) {
  size_t bytes = 0;
  if (const lowbit_status status = lowbit_packed_bytes(&w, &bytes)) return status;
  exact_bytes packed(bytes);
  std::memset(packed.data(), 0xa5, bytes);
  const lowbit_status status = lowbit_pack(&w, packed.data(), bytes, nullptr);
  if (status)
    for (size_t i = 0; i < bytes; ++i)
      if (packed.bytes()[i] != 0xa5) {
        CHECK(false, "byte %zu was written before the error", i);
        break;
      }
  return status;
}

void check_sentence(const char* part) {
  CHECK(std::strstr(lowbit_last_error(), part), "'%s' says nothing of '%s'", lowbit_last_error(), part);
}

}  // namespace

TEST(any_flipped_header_bit_is_found) {
  const canonical_weight w = small_weight("int4", true);
  const exact_bytes good = w.pack();
  packed_reader reader(w);
  for (size_t i = 0; i < sizeof(lowbit::packed_header); ++i) {
    for (const uint8_t flip : {uint8_t{0xff}, uint8_t{1}, uint8_t{0x80}}) {
      exact_bytes bad(good.data(), good.size());
      bad.bytes()[i] ^= flip;
      reader.check_refused(bad.data(), bad.size(), "flipped byte", static_cast<int64_t>(i));
    }
  }
}

TEST(packed_weights_of_another_length_are_refused) {
  const canonical_weight w = small_weight("int4", true);
  const exact_bytes good = w.pack();
  packed_reader reader(w);
  for (size_t bytes = 0; bytes < good.size(); bytes += bytes < 300 ? 1 : 61) {
    const exact_bytes part(good.data(), bytes);
    reader.check_refused(part.data(), bytes, "length", static_cast<int64_t>(bytes));
  }
  exact_bytes longer(good.size() + 64);
  std::memcpy(longer.data(), good.data(), good.size());
  reader.check_refused(longer.data(), longer.size(), "length", static_cast<int64_t>(longer.size()));
}

// A header whose checksum is right but that describes something else.
TEST(forged_headers_are_refused) {
  const canonical_weight w = small_weight("int4");
  const exact_bytes good = w.pack();
  packed_reader reader(w);
  constexpr int64_t most = std::numeric_limits<int64_t>::max(), least = std::numeric_limits<int64_t>::min();
  const auto forge = [&](const char* what, int64_t value, auto change) {
    exact_bytes bad(good.data(), good.size());
    lowbit::packed_header h;
    std::memcpy(&h, bad.data(), sizeof h);
    change(h);
    refresh_checksum(h);
    std::memcpy(bad.data(), &h, sizeof h);
    reader.check_refused(bad.data(), bad.size(), what, value);
  };
  for (const int64_t v : {most, least, most - 1, int64_t{-1}, int64_t{0}, int64_t{17}, int64_t{1} << 31,
                          (int64_t{1} << 31) - 1, int64_t{1} << 47, int64_t{1} << 62}) {
    forge("n", v, [&](auto& h) { h.n = v; });
    forge("k", v == 17 ? 257 : v, [&](auto& h) { h.k = v == 17 ? 257 : v; });
    forge("n and k", v, [&](auto& h) { h.n = h.k = v; });
    if (v < 1) {
      forge("group_n", v, [&](auto& h) { h.group_n = v; });
      forge("group_k", v, [&](auto& h) { h.group_k = v; });
    }
    forge("total", v, [&](auto& h) { h.total_bytes = static_cast<uint64_t>(v); });
  }
  for (const int64_t v : {int64_t{1}, most, most - 1}) forge("group_k", v, [&](auto& h) { h.group_k = v; });
  for (const int v : {-1, 3, 4, 5, 77, std::numeric_limits<int>::min()})
    forge("scale dtype", v, [&](auto& h) { h.scale_dtype = v; });
  forge("zero points", 1, [&](auto& h) { h.has_zero_points = 1; });
  forge("format", 0, [&](auto& h) { std::memset(h.format, 'x', sizeof h.format); });
  forge("version", 2, [&](auto& h) { h.magic[7] = 2; });
}

TEST(impossible_shapes_are_refused) {
  const canonical_weight w = small_weight("int4");
  const auto refused = [&](auto change, const char* part) {
    lowbit_weight d = w.description;
    change(d);
    size_t bytes = 0;
    const lowbit_status status = lowbit_packed_bytes(&d, &bytes);
    CHECK(status == LOWBIT_INVALID_VALUE || status == LOWBIT_INVALID_TYPE, "%s was taken", part);
    check_sentence(part);
    CHECK_EQ(lowbit_pack(&d, nullptr, 0, nullptr), status);
    CHECK_EQ(lowbit_dequantize(&d, nullptr, LOWBIT_F32, nullptr), status);
  };
  refused([](auto& d) { d.format = -1; }, "-1");
  refused([](auto& d) { d.format = 99; }, "99");
  refused([](auto& d) { d.n = 0; }, "0 x 64");
  refused([](auto& d) { d.k = 0; }, "5 x 0");
  refused([](auto& d) { d.k = -3; }, "-3");
  refused([](auto& d) { d.n = int64_t{1} << 40; }, "1099511627776");
  refused([](auto& d) { d.n = d.k = (int64_t{1} << 31) - 1; }, "2^48");
  refused([](auto& d) { d.group_n = 0; }, "0 x 32");
  refused([](auto& d) { d.group_k = -1; }, "-1");
  refused([](auto& d) { d.scale_dtype = LOWBIT_E8M0; }, "e8m0");
  refused([](auto& d) { d.scale_dtype = LOWBIT_I8; }, "int8");
  const int8_t zeros[10] = {};
  for (const char* format : {"mxfp4", "mxfp8", "nvfp4"}) {
    const canonical_weight block = small_weight(format);
    const auto refused_block = [&](auto change, const char* part) {
      lowbit_weight d = block.description;
      change(d);
      size_t bytes = 0;
      CHECK(lowbit_packed_bytes(&d, &bytes) != LOWBIT_OK, "%s: %s was taken", format, part);
      check_sentence(part);
    };
    refused_block([](auto& d) { d.k = 63; }, "63");
    refused_block([](auto& d) { d.group_k = 64; }, "64");
    refused_block([](auto& d) { d.group_n = 2; }, "2 x");
    refused_block([](auto& d) { d.scale_dtype = LOWBIT_F32; }, "float32");
    refused_block([&](auto& d) { d.zero_points = zeros; }, "no zero points");
  }
}

TEST(groups_larger_than_the_weight_are_one_group) {
  canonical_weight w = small_weight("int8");
  const double first = w.value(0, 0);
  for (const int64_t group : {int64_t{65}, int64_t{1} << 40, std::numeric_limits<int64_t>::max()}) {
    w.description.group_n = w.description.group_k = group;
    const exact_bytes packed = w.pack();
    std::vector<float> out(5 * 64);
    CHECK_EQ(lowbit_dequantize_packed(packed.data(), packed.size(), out.data(), LOWBIT_F32, nullptr), LOWBIT_OK);
    CHECK_EQ(out[0], static_cast<float>(first));
    CHECK_EQ(lowbit_dequantize(&w.description, out.data(), LOWBIT_F32, nullptr), LOWBIT_OK);
    CHECK_EQ(out[0], static_cast<float>(first));
    std::vector<uint8_t> codes(w.codes.size()), scales(4);
    const lowbit_weight_arrays arrays{codes.data(), scales.data(), nullptr, nullptr, nullptr, nullptr};
    CHECK_EQ(lowbit_unpack(packed.data(), packed.size(), &arrays, nullptr), LOWBIT_OK);
    CHECK(codes == w.codes);
    const lowbit_encode_args a{w.description.format, 5,          64,      group,       group, out.data(), LOWBIT_F32,
                               w.scales.data(),      LOWBIT_F32, nullptr, codes.data()};
    CHECK_EQ(lowbit_encode(&a, nullptr), LOWBIT_OK);
    CHECK(codes == w.codes);
  }
}

TEST(bad_scales_are_refused) {
  for (const char* format : {"int4", "int8", "fp8_e4m3", "fp4_e2m1", "nf4"}) {
    for (const float bad : {NAN, INFINITY, -INFINITY, -0.5f}) {
      for (const lowbit_dtype dtype : {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16}) {
        random_source random(8);
        canonical_weight w = random_weight({format, 5, 64, 1, 32, dtype, false}, random);
        w.set_scale(7, bad);
        const bool taken = bad == -0.5f && w.format().integer();  // a signed maximum
        CHECK(pack_status(w.description) == (taken ? LOWBIT_OK : LOWBIT_INVALID_VALUE), "%s, scale %g", format,
              static_cast<double>(bad));
        if (!taken) check_sentence("scale[3, 1]");
        std::vector<float> out(5 * 64);
        CHECK_EQ(lowbit_dequantize(&w.description, out.data(), LOWBIT_F32, nullptr),
                 taken ? LOWBIT_OK : LOWBIT_INVALID_VALUE);
      }
    }
  }
  for (const auto& [format, bad] :
       {std::pair{"mxfp4", 255}, {"mxfp8", 255}, {"nvfp4", 0x7f}, {"nvfp4", 0xff}, {"nvfp4", 0x81}}) {
    canonical_weight w = small_weight(format);
    w.scales[1] = static_cast<uint8_t>(bad);
    CHECK(pack_status(w.description) == LOWBIT_INVALID_VALUE, "%s, scale byte %d", format, bad);
  }
  for (const float bad : {NAN, INFINITY, -1.0f}) {
    canonical_weight w = small_weight("nvfp4");
    w.description.global_scale = bad;
    CHECK_EQ(pack_status(w.description), LOWBIT_INVALID_VALUE);
  }
  canonical_weight w = small_weight("int4");
  w.description.global_scale = 2;
  CHECK_EQ(pack_status(w.description), LOWBIT_INVALID_VALUE);
}

TEST(bad_minima_and_super_scales_are_refused) {
  for (const char* format : {"q4_1", "q2_k", "q4_k", "q6_k", "nf4_dq"}) {
    random_source random(9);
    const canonical_weight w = random_weight({format, 5, 512, 1, 32, LOWBIT_F32, false}, random);
    CHECK_EQ(pack_status(w.description), LOWBIT_OK);
    const auto refused = [&](auto change, const char* part) {
      canonical_weight bad = w;
      bad.description.mins = bad.mins.empty() ? nullptr : bad.mins.data();
      bad.description.super_scales = bad.super_scales.empty() ? nullptr : bad.super_scales.data();
      bad.description.super_mins = bad.super_mins.empty() ? nullptr : bad.super_mins.data();
      change(bad);
      CHECK(pack_status(bad.description) == LOWBIT_INVALID_VALUE, "%s: %s was taken", format, part);
      check_sentence(part);
    };
    const lowbit::format_row& f = w.format();
    if (f.minimum) refused([](auto& bad) { bad.description.mins = nullptr; }, "min");
    if (f.minimum && !f.two_levels())
      refused([](auto& bad) { lowbit::store_from_f32(bad.mins.data(), 3, LOWBIT_F16, NAN); }, "min[0, 3]");
    if (f.two_levels()) {
      refused([](auto& bad) { bad.description.super_scales = nullptr; }, "super_scale");
      for (const float number : {NAN, INFINITY})
        refused([&](auto& bad) { lowbit::store_from_f32(bad.super_scales.data(), 0, f.super_dtype(), number); },
                "super_scale[0, 0]");
    }
    if (f.two_levels() && f.minimum) {
      refused([](auto& bad) { bad.description.super_mins = nullptr; }, "super_min");
      refused([](auto& bad) { lowbit::store_from_f32(bad.super_mins.data(), 1, LOWBIT_F16, -INFINITY); },
              "super_min[0, 1]");
    }
    refused([&](auto& bad) { bad.description.scale_offset = f.scale_values ? NAN : 1.0f; }, "scale offset");
    // unpacking wants a place for each
    const exact_bytes packed = w.pack();
    std::vector<uint8_t> codes(w.codes.size()), scales(w.scales.size());
    const lowbit_weight_arrays arrays{codes.data(), scales.data(), nullptr, nullptr, nullptr, nullptr};
    CHECK_EQ(lowbit_unpack(packed.data(), packed.size(), &arrays, nullptr), LOWBIT_INVALID_VALUE);
    check_sentence("pass somewhere to put them");
  }
}

TEST(bad_zero_points_and_codes_are_refused) {
  canonical_weight w = small_weight("int4", true);
  for (const int bad : {8, -9, 127, -128}) {
    w.zero_points[3] = static_cast<int8_t>(bad);
    CHECK_EQ(pack_status(w.description), LOWBIT_INVALID_VALUE);
    check_sentence("zero point [1, 1]");
    check_sentence("-8 to 7");
  }
  w = small_weight("int8", true);
  w.zero_points[0] = -128;
  w.zero_points[1] = 127;
  CHECK_EQ(pack_status(w.description), LOWBIT_OK);
  for (const auto& [format, code] : {std::pair{"fp8_e4m3", 0x7fu},
                                     {"fp8_e4m3", 0xffu},
                                     {"fp8_e5m2", 0x7cu},
                                     {"fp8_e5m2", 0xfcu},
                                     {"fp8_e5m2", 0x7du},
                                     {"fp8_e5m2", 0xffu},
                                     {"mxfp8", 0xffu},
                                     {"ternary", 3u}}) {
    w = small_weight(format);
    w.set_code(4, 63, code);
    CHECK(pack_status(w.description) == LOWBIT_INVALID_VALUE, "%s code %x", format, code);
    check_sentence("[4, 63]");
  }
}

TEST(multiplications_that_cannot_be_are_refused) {
  const canonical_weight w = small_weight("int4"), f = small_weight("fp4_e2m1");
  const exact_bytes packed = w.pack(), packed_f = f.pack();
  std::vector<float> x(3 * 64), y(3 * 5, 42.0f), scales{1, 2, 3};
  std::vector<int32_t> zeros{0, 0, 0};
  const auto refused = [&](auto change, lowbit_status wanted, const char* part) {
    lowbit_gemm_args a{};
    a.family = LOWBIT_INTEGER;
    a.activation = LOWBIT_STATIC;
    a.m = 3;
    a.x = x.data();
    a.x_stride = 64;
    a.packed = packed.data();
    a.packed_bytes = packed.size();
    a.y = y.data();
    a.y_stride = 5;
    a.x_scale = scales.data();
    a.x_zero_point = zeros.data();
    a.num_x_scales = 3;
    change(a);
    const lowbit_status status = lowbit_gemm(&a);
    CHECK(status == wanted, "%s: status %d", part, status);
    if (wanted) check_sentence(part);
    for (const float v : y) CHECK_EQ(v, 42.0f);
  };
  refused([](auto& a) { a.m = -1; }, LOWBIT_INVALID_VALUE, "-1");
  refused(
      [](auto& a) {
        a.m = 0;
        a.num_x_scales = 1;
      },
      LOWBIT_OK, "");
  refused([](auto& a) { a.x_stride = 63; }, LOWBIT_INVALID_VALUE, "63");
  refused([](auto& a) { a.y_stride = 4; }, LOWBIT_INVALID_VALUE, "4");
  refused([](auto& a) { a.x_dtype = LOWBIT_E4M3; }, LOWBIT_INVALID_TYPE, "e4m3");
  refused([](auto& a) { a.y_dtype = LOWBIT_I8; }, LOWBIT_INVALID_TYPE, "int8");
  refused(
      [&](auto& a) {
        a.bias = x.data();
        a.bias_dtype = LOWBIT_I8;
      },
      LOWBIT_INVALID_TYPE, "int8");
  refused(
      [](auto& a) {
        a.x_dtype = LOWBIT_I8;
        a.activation = LOWBIT_DYNAMIC_SYMMETRIC;
      },
      LOWBIT_INVALID_TYPE, "int8");
  refused(
      [](auto& a) {
        a.x_dtype = LOWBIT_I8;
        a.family = LOWBIT_WEIGHT_ONLY;
      },
      LOWBIT_INVALID_TYPE, "int8");
  refused([](auto& a) { a.num_x_scales = 2; }, LOWBIT_INVALID_VALUE, "2 activation scales for 3 rows");
  refused([](auto& a) { a.x_scale = nullptr; }, LOWBIT_INVALID_VALUE, "x_scale is NULL");
  refused(
      [&](auto& a) {
        a.packed = packed_f.data();
        a.packed_bytes = packed_f.size();
      },
      LOWBIT_INVALID_VALUE, "fp4_e2m1");
  for (const float bad : {0.0f, -1.0f, NAN, INFINITY}) {
    scales[1] = bad;
    refused([](auto&) {}, LOWBIT_INVALID_VALUE, "activation scale 1");
  }
  scales[1] = 1;
  for (const int bad : {-129, 128, std::numeric_limits<int>::max()}) {
    zeros[2] = bad;
    refused([](auto&) {}, LOWBIT_INVALID_VALUE, "activation zero point 2");
  }
  zeros[2] = 0;
  refused([](auto& a) { a.activation = static_cast<lowbit_activation>(3); }, LOWBIT_INVALID_VALUE, "activation 3");
  // the epilogue
  std::vector<float> other(3 * 5);
  const auto other_refused = [&](auto change, lowbit_status wanted, const char* part) {
    refused(
        [&](auto& a) {
          a.combination = LOWBIT_ADD;
          a.other = other.data();
          a.other_stride = 5;
          change(a);
        },
        wanted, part);
  };
  refused([](auto& a) { a.function = static_cast<lowbit_function>(5); }, LOWBIT_INVALID_VALUE, "function 5");
  refused([](auto& a) { a.function = static_cast<lowbit_function>(-1); }, LOWBIT_INVALID_VALUE, "function -1");
  other_refused([](auto& a) { a.combination = static_cast<lowbit_combination>(3); }, LOWBIT_INVALID_VALUE,
                "combination 3");
  other_refused([](auto& a) { a.combination = LOWBIT_ALONE; }, LOWBIT_INVALID_VALUE, "other is given");
  other_refused([](auto& a) { a.other = nullptr; }, LOWBIT_INVALID_VALUE, "other is NULL");
  other_refused([](auto& a) { a.other_dtype = LOWBIT_I8; }, LOWBIT_INVALID_TYPE, "other is int8");
  other_refused([](auto& a) { a.other_stride = 4; }, LOWBIT_INVALID_VALUE, "rows of other are 4");
  other_refused([&](auto& a) { a.other = y.data() + 1; }, LOWBIT_INVALID_VALUE, "overlaps y");
  other_refused([&](auto& a) { a.other = y.data() + 14; }, LOWBIT_INVALID_VALUE, "overlaps y");
  other_refused(
      [&](auto& a) {
        a.other = y.data();
        a.other_dtype = LOWBIT_BF16;
      },
      LOWBIT_INVALID_VALUE, "overlaps y");
  other_refused(
      [&](auto& a) {
        a.other = y.data();
        a.other_stride = 6;
      },
      LOWBIT_INVALID_VALUE, "overlaps y");
}

TEST(impossible_levels_are_refused) {
  CHECK_EQ(lowbit_set_cpu_isa(-1), LOWBIT_INVALID_VALUE);
  CHECK_EQ(lowbit_set_cpu_isa(lowbit_num_cpu_isas()), LOWBIT_INVALID_VALUE);
  CHECK_EQ(std::string(lowbit_cpu_isa_name(-1)), std::string());
  CHECK_EQ(lowbit_cpu_isa_supported(99), 0);
  for (int i = 0; i < lowbit_num_cpu_isas(); ++i)
    if (!lowbit_cpu_isa_supported(i)) CHECK_EQ(lowbit_set_cpu_isa(i), LOWBIT_UNSUPPORTED);
}
