// The GPU's packed layout: its index functions, the order in which MMA registers want codes, and that packing loses
// nothing.
#include "layout/fragments.h"

#include <algorithm>

#include "support.h"

namespace {

using lowbit::fragment_shape;

// Shapes around strips of 64 rows, fragments of 16 and steps of 128 columns, by every kind of group.
template <class Visit>
void for_each_shape(const Visit& visit) {
  for (const int64_t n : {1, 8, 17, 63, 64, 65, 130})
    for (const int64_t k : {1, 15, 16, 33, 127, 128, 129, 300})
      for (const int64_t group_k :
           {int64_t{1}, int64_t{7}, int64_t{16}, int64_t{24}, int64_t{32}, int64_t{100}, int64_t{128}, k, k + 300})
        visit(n, k, group_k);
}

exact_bytes pack(const canonical_weight& w, const lowbit_parallel* parallel = nullptr) {
  exact_bytes packed(static_cast<size_t>(lowbit::fragment_offsets_of(w.description).total));
  CHECK(lowbit::pack_fragments(w.description, packed.data(), packed.size(), parallel) == LOWBIT_OK, "%s",
        lowbit_last_error());
  return packed;
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

bool held(const lowbit::format_row& f) { return f.bits == 2 || f.bits == 4 || f.bits == 8; }

// Formats of one level, without minima: support.h makes weights of those.
template <class Visit>
void for_each_format(const Visit& visit) {
  for (int i = 0; i < lowbit::num_formats(); ++i) {
    const lowbit::format_row& f = lowbit::format_at(i);
    if (held(f) && !f.minimum && !f.two_levels()) visit(f.name);
  }
}

}  // namespace

TEST(indices_are_a_bijection) {
  for (const int bits : {2, 4, 8}) {
    for_each_shape([&](int64_t n, int64_t k, int64_t group_k) {
      const auto s = fragment_shape::of(n, k, 1, group_k, bits);
      CHECK(s.k_packed == s.tiles * s.tile_k && s.strips * 64 >= n && s.strips * 64 < n + 64);
      CHECK_EQ(lowbit::round_up(s.k_packed, 128), s.k_packed);
      std::vector<uint8_t> used(static_cast<size_t>(s.code_bytes() * 8 / bits));
      for (int64_t row = 0; row < n; ++row) {
        for (int64_t j = 0; j < k; ++j) {
          const int64_t column = s.column(j), at = s.code_bit(row, column);
          CHECK(column >= 0 && column < s.k_packed && at >= 0 && at < s.code_bytes() * 8,
                "column %lld of %lld x %lld by %lld", static_cast<long long>(j), static_cast<long long>(n),
                static_cast<long long>(k), static_cast<long long>(group_k));
          CHECK_EQ(s.group_of_column(column), j / group_k);
          CHECK_EQ(column / 16 * 16 / s.span, (column / 16 * 16 + 15) / s.span);  // an MMA's 16 columns share a group
          ++used[static_cast<size_t>(at / bits)];
          if (s.k_in_order()) CHECK_EQ(column, j);
        }
      }
      CHECK_EQ(std::count(used.begin(), used.end(), 1), n * k);
      CHECK_EQ(std::count(used.begin(), used.end(), 0), static_cast<int64_t>(used.size()) - n * k);
      std::vector<uint8_t> scales(static_cast<size_t>(s.num_scales()));
      for (int64_t row = 0; row < n; ++row)
        for (int64_t g = 0; g < s.groups; ++g) ++scales[static_cast<size_t>(s.scale_index(row, g))];
      CHECK_EQ(std::count(scales.begin(), scales.end(), 1), n * s.groups);
    });
  }
}

// PTX ISA, mma.m16n8k16 with 16-bit types: a_i holds row g + 8 (i % 2), columns 2 t + 8 (i / 2) and the next. With
// 8-bit types, m16n8k32: row g + 8 (i % 2), columns 4 t + 16 (i / 2) and the next three.
TEST(words_hold_the_registers_of_an_mma) {
  constexpr int64_t n = 64, k = 128;
  for (const int bits : {2, 4, 8}) {
    const auto s = fragment_shape::of(n, k, 1, k, bits);
    for (int64_t row_tile = 0; row_tile < 4; ++row_tile) {
      for (int64_t lane = 0; lane < 32; ++lane) {
        const int64_t g = lane / 4, t = lane % 4;
        for (int64_t i = 0; i < 4; ++i) {
          const int64_t row = row_tile * 16 + g + 8 * (i % 2);
          if (bits == 8) {
            for (int64_t k32 = 0; k32 < k / 32; ++k32)
              for (int64_t b = 0; b < 4; ++b)
                CHECK_EQ(s.code_bit(row, k32 * 32 + 4 * t + 16 * (i / 2) + b),
                         (s.tile_offset(0, k32, row_tile) + lane * 16 + i * 4 + b) * 8);
          } else {
            for (int64_t k16 = 0; k16 < k / 16; ++k16) {
              const int64_t column = k16 * 16 + 2 * t + 8 * (i / 2), in_tile = k16 % (s.tile_k / 16);
              const int64_t word = bits == 4 ? in_tile : in_tile / 2, shift = bits == 4 ? 0 : in_tile % 2 * 8;
              const int64_t bit =
                  (s.tile_offset(0, column / s.tile_k, row_tile) + lane * 16 + word * 4) * 8 + shift + i * bits;
              CHECK_EQ(s.code_bit(row, column), bit);
              CHECK_EQ(s.code_bit(row, column + 1), bit + 16);
            }
          }
        }
      }
    }
  }
}

TEST(packed_codes_lie_where_the_index_says) {
  random_source random(31);
  int turn = 0;
  for_each_format([&](const char* format) {
    for_each_shape([&](int64_t n, int64_t k, int64_t group_k) {
      if (++turn % (sanitized ? 41 : 11)) return;
      const canonical_weight w = random_weight(options_of(format, n, k, group_k, turn), random);
      thread_pool threads(turn % 3 + 1);
      const exact_bytes packed = pack(w, &threads.parallel);
      lowbit::fragment_view v;
      CHECK_EQ(lowbit::view_fragments(packed.data(), packed.size(), &v), LOWBIT_OK);
      const unsigned mask = (1u << w.format().bits) - 1;
      std::vector<int64_t> sums(static_cast<size_t>(v.shape.num_scales()));
      for (int64_t row = 0; row < n; ++row) {
        for (int64_t j = 0; j < w.k(); ++j) {
          const int64_t bit = v.shape.code_bit(row, v.shape.column(j)), g = j / w.description.group_k;
          const unsigned code = v.codes[bit / 8] >> (bit % 8) & mask;
          CHECK(code == w.code(row, j), "%s [%lld, %lld]", format, static_cast<long long>(row),
                static_cast<long long>(j));
          const int64_t at = v.shape.scale_index(row, g);
          CHECK_EQ(static_cast<double>(v.scale_at(at, 0)), w.scale(row, j));
          CHECK_EQ(v.zero_point_at(at), static_cast<float>(w.zero_point(row, j)));
          if (w.format().integer()) sums[static_cast<size_t>(at)] += static_cast<int64_t>(w.format().values[code]);
        }
      }
      CHECK_EQ(v.column_sums != nullptr, w.format().integer());
      for (size_t i = 0; v.column_sums && i < sums.size(); ++i) CHECK_EQ(v.column_sums[i], sums[i]);
    });
  });
}

TEST(unpacking_and_dequantizing_invert_packing) {
  random_source random(32);
  int turn = 0;
  for_each_format([&](const char* format) {
    for_each_shape([&](int64_t n, int64_t k, int64_t group_k) {
      if (++turn % (sanitized ? 29 : 5)) return;
      canonical_weight w = random_weight(options_of(format, n, k, group_k, turn), random);
      thread_pool threads(turn % 3 + 1);
      const exact_bytes packed = pack(w, &threads.parallel);
      exact_bytes codes(w.codes.size()), scales(w.scales.size()), zeros(w.zero_points.size());
      lowbit_weight_arrays out{};
      out.codes = codes.data();
      out.scales = scales.data();
      out.zero_points = w.zero_points.empty() ? nullptr : reinterpret_cast<int8_t*>(zeros.data());
      CHECK_EQ(lowbit::unpack_fragments(packed.data(), packed.size(), out, &threads.parallel), LOWBIT_OK);
      const int64_t last = w.k() * w.format().bits % 8;  // what lies beyond the row's end is no code
      for (int64_t i = 0; i < n && last; ++i)
        w.codes[static_cast<size_t>((i + 1) * w.row_bytes() - 1)] &= static_cast<uint8_t>((1 << last) - 1);
      CHECK(!std::memcmp(codes.data(), w.codes.data(), w.codes.size()) &&
                !std::memcmp(scales.data(), w.scales.data(), w.scales.size()) &&
                (w.zero_points.empty() || !std::memcmp(zeros.data(), w.zero_points.data(), zeros.size())),
            "%s %lld x %lld, group %lld", format, static_cast<long long>(n), static_cast<long long>(w.k()),
            static_cast<long long>(group_k));
      const size_t bytes = static_cast<size_t>(n * w.k()) * 2;
      exact_bytes direct(bytes), from_packed(bytes);
      CHECK_EQ(lowbit_dequantize(&w.description, direct.data(), LOWBIT_BF16, nullptr), LOWBIT_OK);
      CHECK_EQ(lowbit::dequantize_fragments(packed.data(), packed.size(), from_packed.data(), LOWBIT_BF16,
                                            &threads.parallel),
               LOWBIT_OK);
      CHECK(!std::memcmp(direct.data(), from_packed.data(), bytes), "%s", format);
    });
  });
}

TEST(each_layout_refuses_the_others_bytes) {
  random_source random(33);
  const canonical_weight w = random_weight({"int4", 20, 200, 1, 128, LOWBIT_F16, true}, random);
  const exact_bytes panels = w.pack(), fragments = pack(w);
  lowbit::fragment_view v;
  lowbit::packed_view p;
  CHECK_EQ(lowbit::view_fragments(panels.data(), panels.size(), &v), LOWBIT_INVALID_VALUE);
  CHECK(std::strstr(lowbit_last_error(), "packed for CPUs") != nullptr, "%s", lowbit_last_error());
  CHECK_EQ(lowbit::view_packed(fragments.data(), fragments.size(), &p), LOWBIT_INVALID_VALUE);
  CHECK(std::strstr(lowbit_last_error(), "packed for GPUs") != nullptr, "%s", lowbit_last_error());
  CHECK_EQ(lowbit::view_fragments(fragments.data(), fragments.size() - 64, &v), LOWBIT_INVALID_VALUE);
  for (size_t i = 0; i < sizeof(lowbit::packed_header); ++i) {  // any one bit of the header
    exact_bytes broken(fragments.data(), fragments.size());
    broken.bytes()[i] = static_cast<uint8_t>(broken.bytes()[i] ^ 1u << i % 8);
    CHECK(lowbit::view_fragments(broken.data(), broken.size(), &v) != LOWBIT_OK, "byte %zu", i);
  }
}

TEST(widths_that_no_kernel_reads_are_refused) {
  random_source random(33);
  for (const char* format : {"int3", "int5", "int6", "fp6_e2m3", "mxfp6_e3m2"}) {
    const canonical_weight w = random_weight({format, 20, 96, 1, 32, LOWBIT_F16, false}, random);
    exact_bytes packed(1 << 16);
    CHECK_EQ(lowbit::pack_fragments(w.description, packed.data(), packed.size(), nullptr), LOWBIT_UNSUPPORTED);
    CHECK(std::strstr(lowbit_last_error(), format), "%s", lowbit_last_error());
  }
}
