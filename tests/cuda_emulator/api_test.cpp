// The whole path through the C API on the emulated device: pack, multiply, unpack; what explain says is what runs; what
// is refused and how.
#include "dispatch/cuda.h"
#include "emulator/emulator.h"
#include "layout/fragments.h"
#include "support.h"

namespace {

using bytes = std::vector<uint8_t>;
using device_bytes = emulator::buffer<uint8_t>;

#define CHECK_RAN(call)                                                    \
  do {                                                                     \
    CHECK(call == LOWBIT_OK, "%s", lowbit_last_error());                   \
    CHECK(emulator::failure().empty(), "%s", emulator::failure().c_str()); \
  } while (false)

bytes floats(int64_t count, lowbit_dtype dtype, random_source& random, float low = -1, float high = 1) {
  bytes data(static_cast<size_t>(count * lowbit::dtype_bytes(dtype)));
  for (int64_t i = 0; i < count; ++i) lowbit::store_from_f32(data.data(), i, dtype, random.uniform(low, high));
  return data;
}

// A weight on the device, packed there, and its description.
struct device_weight {
  canonical_weight host;
  device_bytes codes, scales, zero_points;
  lowbit_weight description;
  size_t packed_bytes;
  device_bytes packed;

  device_weight(const weight_options& options, random_source& random)
      : host(random_weight(options, random)),
        codes(host.codes),
        scales(host.scales),
        zero_points(host.zero_points.empty() ? bytes{0} : bytes(host.zero_points.begin(), host.zero_points.end())),
        description(described()),
        packed_bytes(size_of(description)),
        packed(packed_bytes) {
    CHECK_RAN(lowbit_pack_cuda(&description, packed.data(), packed_bytes, nullptr));
  }

 private:
  lowbit_weight described() {
    lowbit_weight w = host.description;
    w.packed_for = LOWBIT_CUDA;
    w.codes = codes.data();
    w.scales = scales.data();
    if (w.zero_points) w.zero_points = reinterpret_cast<const int8_t*>(zero_points.data());
    return w;
  }
  static size_t size_of(const lowbit_weight& w) {
    size_t size = 0;
    CHECK_EQ(lowbit_packed_bytes(&w, &size), LOWBIT_OK);
    return size;
  }
};

struct product {
  lowbit_family family;
  int64_t m;
  lowbit_dtype x_dtype, y_dtype;
  bool bias = true;
  lowbit_activation activation = LOWBIT_DYNAMIC_SYMMETRIC;
  int64_t padding = 0;  // elements between the rows of x and of y
  lowbit_function function = LOWBIT_IDENTITY;
  lowbit_combination combination = LOWBIT_ALONE;
  bool in_place = false;  // `other` is y
};

// The same arguments for both devices; `cuda` has its own pointers.
lowbit_gemm_args arguments(const product& p, const lowbit_weight& w) {
  lowbit_gemm_args a{};
  a.family = p.family;
  a.m = p.m;
  a.x_dtype = p.x_dtype;
  a.x_stride = w.k + p.padding;
  a.bias_dtype = LOWBIT_F32;
  a.y_dtype = p.y_dtype;
  a.y_stride = w.n + p.padding;
  a.activation = p.activation;
  a.function = p.function;
  a.combination = p.combination;
  a.other_dtype = p.in_place ? p.y_dtype : LOWBIT_F16;
  a.other_stride = a.y_stride;
  return a;
}

// y by the CPU and by the emulated device.
struct results {
  bytes cpu, cuda;
  std::vector<float> x;  // as the kernels read it, [m][k]
};

results multiply(const product& p, const device_weight& w, random_source& random) {
  const lowbit_weight& d = w.description;
  lowbit_gemm_args a = arguments(p, d);
  bytes x = floats(p.m * a.x_stride, p.x_dtype == LOWBIT_I8 ? LOWBIT_F32 : p.x_dtype, random);
  if (p.x_dtype == LOWBIT_I8) {
    x.resize(static_cast<size_t>(p.m * a.x_stride));
    for (uint8_t& b : x) b = static_cast<uint8_t>(random.below(256));
  }
  const bytes bias = floats(d.n, LOWBIT_F32, random);
  std::vector<float> x_scale(1, 0.0125f);
  const std::vector<int32_t> x_zero(1, 3);
  const size_t y_bytes = static_cast<size_t>(((p.m - 1) * a.y_stride + d.n) * lowbit::dtype_bytes(p.y_dtype));
  const bytes other = floats(p.m * a.other_stride, a.other_dtype, random);
  results r{bytes(y_bytes, 0xa5), {}, {}};
  if (p.in_place) r.cpu.assign(other.begin(), other.begin() + static_cast<std::ptrdiff_t>(y_bytes));
  for (int64_t i = 0; i < p.m; ++i)
    for (int64_t k = 0; k < d.k; ++k) r.x.push_back(lowbit::load_as_f32(x.data(), i * a.x_stride + k, p.x_dtype));

  const exact_bytes packed = w.host.pack();
  lowbit_gemm_args on_cpu = a;
  on_cpu.x = x.data();
  on_cpu.packed = packed.data();
  on_cpu.packed_bytes = packed.size();
  on_cpu.bias = p.bias ? bias.data() : nullptr;
  on_cpu.y = r.cpu.data();
  if (p.combination) on_cpu.other = p.in_place ? r.cpu.data() : other.data();
  if (p.activation == LOWBIT_STATIC) {
    on_cpu.x_scale = x_scale.data();
    on_cpu.x_zero_point = x_zero.data();
    on_cpu.num_x_scales = 1;
  }
  CHECK(lowbit_gemm(&on_cpu) == LOWBIT_OK, "%s", lowbit_last_error());

  const device_bytes device_x(x), device_bias(bias);
  const emulator::buffer<float> device_scale(x_scale);
  const emulator::buffer<int32_t> device_zero(x_zero);
  const device_bytes device_other(other);
  device_bytes y(y_bytes);
  if (p.in_place) y.set(other.data(), y_bytes);
  a.device = LOWBIT_CUDA;
  a.weight = &d;
  a.x = device_x.data();
  a.packed = w.packed.data();
  a.packed_bytes = w.packed_bytes;
  a.bias = p.bias ? device_bias.data() : nullptr;
  a.y = y.data();
  if (p.combination) a.other = p.in_place ? static_cast<const void*>(y.data()) : device_other.data();
  if (p.activation == LOWBIT_STATIC) {
    a.x_scale = device_scale.data();
    a.x_zero_point = device_zero.data();
    a.num_x_scales = 1;
  }
  CHECK(lowbit_gemm_workspace(&a, &a.workspace_bytes) == LOWBIT_OK, "%s", lowbit_last_error());
  device_bytes workspace(a.workspace_bytes + 1);
  a.workspace = workspace.data();
  CHECK_RAN(lowbit_gemm(&a));
  r.cuda = y.values_or(0xa5);
  return r;
}

float at(const bytes& data, int64_t i, lowbit_dtype dtype) { return lowbit::load_as_f32(data.data(), i, dtype); }

}  // namespace

TEST(unpacking_inverts) {
  random_source random(2);
  for (const char* format : {"int4", "int8", "fp8_e4m3", "nvfp4"}) {
    weight_options o{format, 70, 192};
    o.zero_point = true;
    const device_weight w(o, random);
    device_bytes codes(w.host.codes.size()), scales(w.host.scales.size()), zeros(w.host.zero_points.size() + 1);
    const lowbit_weight_arrays out{codes.data(), scales.data(), reinterpret_cast<int8_t*>(zeros.data()),
                                   nullptr,      nullptr,       nullptr};
    CHECK_RAN(lowbit_unpack_cuda(&w.description, w.packed.data(), w.packed_bytes, &out, nullptr));
    CHECK(codes.values() == w.host.codes && scales.values() == w.host.scales, "%s", format);
  }
}

// x and W rounded to 16 bits, sums in another order: the bound of cuda/contract.h.
TEST(weight_only_products) {
  random_source random(3);
  for (const char* format : {"int4", "int8", "fp8_e4m3", "mxfp4", "nvfp4", "nf4"}) {
    for (const lowbit_dtype dtype : {LOWBIT_BF16, LOWBIT_F16, LOWBIT_F32}) {
      if (dtype == LOWBIT_F16 && std::strcmp(format, "mxfp4") == 0) continue;  // scales of 2^9: the contract's end
      weight_options o{format, 72, 160};
      o.group_k = 32;
      o.zero_point = dtype == LOWBIT_F16;
      o.scale_dtype = LOWBIT_F16;
      const device_weight w(o, random);
      const lowbit_weight& d = w.description;
      const product p{LOWBIT_WEIGHT_ONLY, 5, dtype, LOWBIT_F32, true, LOWBIT_DYNAMIC_SYMMETRIC, 8};
      const results r = multiply(p, w, random);
      const double eps = dtype == LOWBIT_F16 ? 0x1p-10 : 0x1p-7;  // of x or W, both rounded at most
      for (int64_t i = 0; i < p.m; ++i) {
        for (int64_t j = 0; j < d.n; ++j) {
          double size = 1;
          for (int64_t k = 0; k < d.k; ++k)
            size += std::fabs(static_cast<double>(r.x[static_cast<size_t>(i * d.k + k)]) * w.host.value(j, k)) *
                    d.global_scale;
          const int64_t index = i * (d.n + p.padding) + j;
          const double cpu = at(r.cpu, index, p.y_dtype), cuda = at(r.cuda, index, p.y_dtype);
          CHECK(std::fabs(cpu - cuda) <= 2 * eps * size, "%s %s [%lld, %lld]: %g, %g on the CPU", format,
                lowbit::dtype_name(dtype), static_cast<long long>(i), static_cast<long long>(j), cuda, cpu);
        }
      }
    }
  }
}

TEST(integer_products_are_the_cpu_s_to_the_bit) {
  random_source random(4);
  for (const char* format : {"int4", "int8"}) {
    for (const bool grouped : {false, true}) {
      weight_options o{format, 70, 200};
      o.group_k = grouped ? 48 : 200;
      o.zero_point = grouped;
      const device_weight w(o, random);
      const product products[] = {
          {LOWBIT_INTEGER, 3, LOWBIT_BF16, LOWBIT_BF16, true, LOWBIT_DYNAMIC_SYMMETRIC, 0},
          {LOWBIT_INTEGER, 9, LOWBIT_F32, LOWBIT_F32, false, LOWBIT_DYNAMIC_ASYMMETRIC, 3},
          {LOWBIT_INTEGER, 17, LOWBIT_F16, LOWBIT_F32, true, LOWBIT_STATIC, 1},
          {LOWBIT_INTEGER, 70, LOWBIT_I8, LOWBIT_F16, true, LOWBIT_STATIC, 5},
          // and what may follow the sums
          {LOWBIT_INTEGER, 3, LOWBIT_BF16, LOWBIT_BF16, true, LOWBIT_DYNAMIC_SYMMETRIC, 0, LOWBIT_SILU},
          {LOWBIT_INTEGER, 9, LOWBIT_F32, LOWBIT_F32, true, LOWBIT_DYNAMIC_SYMMETRIC, 3, LOWBIT_RELU},
          {LOWBIT_INTEGER, 5, LOWBIT_F32, LOWBIT_F32, true, LOWBIT_DYNAMIC_SYMMETRIC, 3, LOWBIT_GELU, LOWBIT_ADD, true},
          {LOWBIT_INTEGER, 7, LOWBIT_BF16, LOWBIT_F16, true, LOWBIT_STATIC, 5, LOWBIT_GELU_TANH, LOWBIT_MULTIPLY},
          {LOWBIT_INTEGER, 2, LOWBIT_BF16, LOWBIT_BF16, false, LOWBIT_STATIC, 0, LOWBIT_IDENTITY, LOWBIT_ADD, true},
      };
      for (const product& p : products) {
        const results r = multiply(p, w, random);
        CHECK(r.cpu == r.cuda, "%s, %s x, activation %d, function %d, combination %d%s", format,
              lowbit::dtype_name(p.x_dtype), p.activation, p.function, p.combination,
              grouped ? ", groups and zero points" : "");
      }
    }
  }
}

TEST(explain_says_what_runs) {
  for (const int arch : {0, 80, 86, 89, 90, 100, 103, 120}) {
    for (const lowbit_family family : {LOWBIT_WEIGHT_ONLY, LOWBIT_INTEGER, LOWBIT_FP8}) {
      for (const int64_t m : {1, 16, 100, 5000}) {
        lowbit_problem p{};
        p.family = family;
        CHECK_EQ(lowbit_format_find(family == LOWBIT_FP8 ? "fp8_e4m3" : "int4", &p.format), LOWBIT_OK);
        p.m = m;
        p.n = p.k = 4096;
        p.group_k = family == LOWBIT_FP8 ? p.k : 128;
        p.x_dtype = LOWBIT_BF16;
        p.device = LOWBIT_CUDA;
        p.arch = arch;
        struct counts {
          int chosen = 0, rows = 0;
          bool silent = false;
        } c;
        const auto visit = [](void* context, int32_t kernel, int32_t chosen, const char* reason) {
          counts& count = *static_cast<counts*>(context);
          lowbit_kernel_info info;
          CHECK_EQ(lowbit_kernel_get(kernel, &info), LOWBIT_OK);
          CHECK_EQ(info.device, LOWBIT_CUDA);
          count.chosen += chosen;
          ++count.rows;
          count.silent |= !chosen && !*reason;
        };
        CHECK_EQ(lowbit_explain(&p, visit, &c), LOWBIT_OK);
        const bool exists = family != LOWBIT_FP8 || arch == 0 || arch >= 89;
        CHECK(c.chosen == exists, "sm_%d, family %d, m = %lld: %d chosen of %d", arch, family,
              static_cast<long long>(m), c.chosen, c.rows);
        CHECK(!c.silent && c.rows > 0, "a kernel without a reason");
      }
    }
  }
}

TEST(what_cannot_be_is_refused) {
  random_source random(6);
  const weight_options o{"int4", 64, 128};
  const device_weight w(o, random);
  const bytes x(128 * 2);
  const device_bytes device_x(x);
  device_bytes y(64 * 2);
  lowbit_gemm_args good{};
  good.device = LOWBIT_CUDA;
  good.weight = &w.description;
  good.m = 1;
  good.x = device_x.data();
  good.x_dtype = LOWBIT_BF16;
  good.x_stride = 128;
  good.packed = w.packed.data();
  good.packed_bytes = w.packed_bytes;
  good.y = y.data();
  good.y_dtype = LOWBIT_BF16;
  good.y_stride = 64;
  CHECK_EQ(lowbit_gemm_workspace(&good, &good.workspace_bytes), LOWBIT_OK);
  device_bytes workspace(good.workspace_bytes + 256);
  good.workspace = workspace.data();
  CHECK_RAN(lowbit_gemm(&good));
  const auto refused = [&](auto change, lowbit_status wanted, const char* words) {
    lowbit_gemm_args a = good;
    change(a);
    CHECK_EQ(lowbit_gemm(&a), wanted);
    CHECK(std::strstr(lowbit_last_error(), words), "'%s' without '%s'", lowbit_last_error(), words);
  };
  refused([](auto& a) { a.weight = nullptr; }, LOWBIT_INVALID_VALUE, "needs the description");
  refused([](auto& a) { --a.packed_bytes; }, LOWBIT_INVALID_VALUE, "bytes: a 64 x 128 int4 weight for CUDA has");
  refused([](auto& a) { a.x_dtype = LOWBIT_E4M3; }, LOWBIT_INVALID_TYPE, "x is float8_e4m3fn");
  refused([](auto& a) { a.y_dtype = LOWBIT_I8; }, LOWBIT_INVALID_TYPE, "y is int8");
  refused([](auto& a) { a.m = -1; }, LOWBIT_INVALID_VALUE, "m is -1");
  refused([](auto& a) { a.function = static_cast<lowbit_function>(9); }, LOWBIT_INVALID_VALUE, "function 9");
  refused(
      [](auto& a) {
        a.combination = LOWBIT_ADD;
        a.other_stride = 64;
      },
      LOWBIT_INVALID_VALUE, "other is NULL");
  refused([](auto& a) { a.device = static_cast<lowbit_device>(7); }, LOWBIT_INVALID_VALUE, "device is 7");
  for (const char* format : {"nf4", "fp8_e5m2", "int8"}) {
    const device_weight other({format, 64, 128}, random);
    refused(
        [&](auto& a) {
          a.family = LOWBIT_FP8;
          a.weight = &other.description;
          a.packed = other.packed.data();
          a.packed_bytes = other.packed_bytes;
        },
        LOWBIT_UNSUPPORTED, "no kernel multiplies");
  }
  refused(
      [](auto& a) {
        a.family = LOWBIT_INTEGER;
        a.workspace_bytes = 16;
      },
      LOWBIT_INVALID_VALUE, "workspace has 16 bytes");
  lowbit_gemm_args none = good;
  none.m = 0;
  CHECK_EQ(lowbit_gemm(&none), LOWBIT_OK);
}

TEST(a_description_survives_its_text) {
  random_source random(7);
  for (const char* format : {"int4", "int8", "fp8_e4m3", "mxfp4", "nvfp4", "nf4"}) {
    weight_options o{format, 33, 96};
    o.zero_point = true;
    const canonical_weight w = random_weight(o, random);
    char text[160];
    lowbit_weight back;
    CHECK_EQ(lowbit_weight_to_text(&w.description, text, sizeof text), LOWBIT_OK);
    CHECK(lowbit_weight_from_text(text, &back) == LOWBIT_OK, "%s", lowbit_last_error());
    const lowbit_weight& d = w.description;
    CHECK(back.format == d.format && back.n == d.n && back.k == d.k && back.group_n == d.group_n &&
              back.group_k == d.group_k && back.scale_dtype == d.scale_dtype &&
              (back.zero_points != nullptr) == (d.zero_points != nullptr),
          "%s", text);
    CHECK_EQ(lowbit_weight_to_text(&w.description, text, 5), LOWBIT_INVALID_VALUE);
  }
  for (const char* text : {"", "int4", "int4 4x4", "int4 4x4 1x4", "int9 4x4 1x4 float32", "int4 4x4 1x4 float33",
                           "int4 4x 4 1x4 float32", "int4 4x4 1x4 float32 zero", "int4 4x4 1x4 float32 zero_points x",
                           "int4 -4x4 1x4 float32", "int4 0x4 1x4 float32", "int4 4x4 1x4 float32 ",
                           "int4 99999999999999999999x4 1x4 float32", "nf4 4x4 1x4 float32 zero_points",
                           "mxfp4 4x33 1x32 float8_e8m0fnu", "int4aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 4x4 1x4 float32"}) {
    lowbit_weight w;
    CHECK(lowbit_weight_from_text(text, &w) != LOWBIT_OK, "'%s' was taken", text);
  }
}
