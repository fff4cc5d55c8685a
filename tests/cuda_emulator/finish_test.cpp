// What finishes a product on the device gives the bits of the formula (gemm/epilogue.h), wherever its arrays are.
#include <cmath>

#include "cuda/sm80/finish.h"
#include "emulator/emulator.h"
#include "fragments_support.h"

namespace {

using bytes = std::vector<uint8_t>;

bytes numbers(int64_t count, int dtype, random_source& random) {
  bytes data(static_cast<size_t>(count * lowbit::dtype_bytes(dtype)));
  for (int64_t i = 0; i < count; ++i)
    lowbit::store_from_f32(data.data(), i, dtype, random.uniform(-1, 1) * (random.below(9) ? 4.0f : 120.0f));
  return data;
}

enum class place { apart, y_is_other, y_is_sums };

void check(lowbit_function function, lowbit_combination combination, int y_dtype, int other_dtype, place where,
           int64_t m, int64_t n, random_source& random) {
  const int64_t stride = n + random.of({0, 3, 24});
  const bytes sums = numbers(m * stride, LOWBIT_F32, random), other = numbers(m * stride, other_dtype, random);
  bytes wanted(static_cast<size_t>(m * stride * lowbit::dtype_bytes(y_dtype)), 0xa5);
  if (where == place::y_is_other) wanted = other;
  if (where == place::y_is_sums) wanted = sums;
  emulator::buffer<uint8_t> device_sums(sums.size()), device_other(other.size()), y(wanted.size());
  device_sums.set(sums.data(), sums.size());
  device_other.set(other.data(), other.size());
  const emulator::buffer<uint8_t>& out = where == place::y_is_other  ? device_other
                                         : where == place::y_is_sums ? device_sums
                                                                     : y;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = i * stride + j;
      const float value = lowbit::apply(function, lowbit::load_as_f32(sums.data(), at, LOWBIT_F32));
      const float with = lowbit::load_as_f32(other.data(), at, other_dtype);
      lowbit::store_from_f32(wanted.data(), at, y_dtype, lowbit::combine(combination, value, with));
    }
  lowbit::cuda::sm80::finish_problem p{};
  p.m = m;
  p.n = n;
  p.sums = reinterpret_cast<const float*>(device_sums.data());
  p.y = out.data();
  p.y_dtype = y_dtype;
  p.sums_stride = p.y_stride = stride;
  p.epilogue = {function, combination, combination ? device_other.data() : nullptr, other_dtype, stride};
  CHECK(lowbit::cuda::sm80::finish(p, nullptr) == LOWBIT_OK, "%s", lowbit::last_error());
  CHECK(emulator::failure().empty(), "%s", emulator::failure().c_str());
  CHECK(out.values_or(0xa5) == wanted, "function %d, combination %d, %s y, %s other, %lld x %lld, %d", function,
        combination, lowbit::dtype_name(y_dtype), lowbit::dtype_name(other_dtype), static_cast<long long>(m),
        static_cast<long long>(n), static_cast<int>(where));
}

}  // namespace

TEST(finish_has_the_formula_s_bits) {
  random_source random(61);
  for (int function = LOWBIT_IDENTITY; function <= LOWBIT_RELU; ++function)
    for (int combination = LOWBIT_ALONE; combination <= LOWBIT_MULTIPLY; ++combination)
      for (const int y_dtype : {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16}) {
        const auto f = static_cast<lowbit_function>(function);
        const auto c = static_cast<lowbit_combination>(combination);
        const int other_dtype = random.of<int>({LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16});
        check(f, c, y_dtype, other_dtype, place::apart, 3, 300, random);
        if (c) check(f, c, y_dtype, y_dtype, place::y_is_other, 2, 257, random);
      }
  check(LOWBIT_GELU, LOWBIT_ALONE, LOWBIT_F32, LOWBIT_F32, place::y_is_sums, 5, 31, random);
  check(LOWBIT_SILU, LOWBIT_ALONE, LOWBIT_BF16, LOWBIT_F32, place::apart, 1, 1, random);
}
