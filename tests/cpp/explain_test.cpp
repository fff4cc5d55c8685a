// Selection: what lowbit_explain says is what runs.
#include <set>

#include "support.h"

namespace {

struct candidate {
  int32_t kernel;
  bool chosen;
  std::string reason;
};

std::vector<candidate> explain(const lowbit_problem& problem) {
  std::vector<candidate> out;
  const lowbit_status status = lowbit_explain(
      &problem,
      [](void* context, int32_t kernel, int32_t chosen, const char* reason) {
        static_cast<std::vector<candidate>*>(context)->push_back({kernel, chosen != 0, reason});
      },
      &out);
  CHECK_EQ(status, LOWBIT_OK);
  return out;
}

int level_of(const char* isa) {
  for (int i = 0; i < lowbit_num_cpu_isas(); ++i)
    if (!std::strcmp(lowbit_cpu_isa_name(i), isa)) return i;
  return -1;
}

lowbit_problem problem_of(lowbit_family family, lowbit_format format, int64_t m, lowbit_dtype x_dtype) {
  lowbit_problem p{};
  p.family = family;
  p.format = format;
  p.m = m;
  p.n = 64;
  p.k = 128;
  p.group_k = 32;
  p.x_dtype = x_dtype;
  return p;
}

template <class Visit>
void for_each_problem(const Visit& visit) {
  const int before = lowbit_cpu_isa();
  for (int isa = 0; isa < lowbit_num_cpu_isas(); ++isa) {
    if (!lowbit_cpu_isa_supported(isa)) {
      std::printf("  skipped: this processor cannot run %s\n", lowbit_cpu_isa_name(isa));
      continue;
    }
    CHECK_EQ(lowbit_set_cpu_isa(isa), LOWBIT_OK);
    CHECK_EQ(lowbit_cpu_isa(), isa);
    for (const lowbit_family family : {LOWBIT_WEIGHT_ONLY, LOWBIT_INTEGER})
      for (lowbit_format format = 0; format < lowbit_num_formats(); ++format)
        for (const lowbit_dtype x : {LOWBIT_F32, LOWBIT_F16, LOWBIT_BF16, LOWBIT_I8})
          for (const int64_t m : {1, 4, 256}) visit(isa, problem_of(family, format, m, x));
  }
  lowbit_set_cpu_isa(before);
}

}  // namespace

TEST(one_kernel_is_chosen_and_every_other_has_a_reason) {
  for_each_problem([](int isa, const lowbit_problem& problem) {
    const bool integer = problem.family == LOWBIT_INTEGER;
    const bool exists = integer ? lowbit::format_at(problem.format).integer() : problem.x_dtype != LOWBIT_I8;
    std::set<int32_t> seen;
    int chosen = 0, last_level = lowbit_num_cpu_isas();
    for (const candidate& c : explain(problem)) {
      lowbit_kernel_info info;
      CHECK_EQ(lowbit_kernel_get(c.kernel, &info), LOWBIT_OK);
      CHECK(seen.insert(c.kernel).second, "%s twice", info.name);
      CHECK_EQ(info.family, problem.family);
      CHECK(level_of(info.isa) <= last_level, "%s is better than what came before it", info.name);
      last_level = level_of(info.isa);
      CHECK(c.chosen == c.reason.empty(), "%s: '%s'", info.name, c.reason.c_str());
      if (last_level > isa)
        CHECK(c.reason.find(info.isa) != std::string::npos, "%s: '%s'", info.name, c.reason.c_str());
      chosen += c.chosen;
      if (c.chosen) CHECK(info.runnable && last_level <= isa, "%s", info.name);
    }
    CHECK_EQ(chosen, exists);
    int rows = 0;
    for (int32_t i = 0; i < lowbit_num_kernels(); ++i) {
      lowbit_kernel_info info;
      CHECK_EQ(lowbit_kernel_get(i, &info), LOWBIT_OK);
      rows += info.family == problem.family && info.device == LOWBIT_CPU;
    }
    CHECK_EQ(static_cast<int>(seen.size()), rows);
  });
}

TEST(a_reason_fits_its_kernel) {
  for_each_problem([](int, const lowbit_problem& problem) {
    bool found = false;  // the chosen one: what follows it was good enough, but worse
    for (const candidate& c : explain(problem)) {
      CHECK((c.reason == "a better one runs") <= found, "'%s' before the chosen kernel", c.reason.c_str());
      found |= c.chosen;
    }
  });
}

TEST(the_table_of_kernels) {
  lowbit_kernel_info info;
  std::set<std::string> names;
  for (int32_t i = 0; i < lowbit_num_kernels(); ++i) {
    CHECK_EQ(lowbit_kernel_get(i, &info), LOWBIT_OK);
    CHECK(names.insert(info.name).second, "%s twice", info.name);
    CHECK(std::strstr(info.name, info.isa), "%s is of level %s", info.name, info.isa);
    static constexpr const char* families[] = {"weight_only_", "integer_", "fp8_"};
    const char* family = families[info.family];
    CHECK(!std::strncmp(info.name, family, std::strlen(family)), "%s", info.name);
    CHECK(info.mr > 0 && info.nr > 0 && info.kr > 0, "%s", info.name);
    if (info.device == LOWBIT_CPU) {
      const int level = level_of(info.isa);
      CHECK(info.runnable == (level <= lowbit_cpu_isa() && lowbit_cpu_isa_supported(level)), "%s", info.name);
    }
  }
  CHECK_EQ(lowbit_kernel_get(-1, &info), LOWBIT_INVALID_VALUE);
  CHECK_EQ(lowbit_kernel_get(lowbit_num_kernels(), &info), LOWBIT_INVALID_VALUE);
  const lowbit_problem unknown = problem_of(LOWBIT_WEIGHT_ONLY, 99, 1, LOWBIT_F32);
  CHECK_EQ(lowbit_explain(&unknown, nullptr, nullptr), LOWBIT_INVALID_VALUE);
  for (int64_t lowbit_problem::* size :
       {&lowbit_problem::m, &lowbit_problem::n, &lowbit_problem::k, &lowbit_problem::group_k, &lowbit_problem::group_n})
    for (const lowbit_device device : {LOWBIT_CPU, LOWBIT_CUDA}) {
      lowbit_problem impossible = problem_of(LOWBIT_WEIGHT_ONLY, 0, 1, LOWBIT_F32);
      impossible.device = device;
      impossible.arch = 90;
      impossible.*size = -1;
      CHECK_EQ(lowbit_explain(&impossible, nullptr, nullptr), LOWBIT_INVALID_VALUE);
    }
}

TEST(a_level_caps_what_runs) {
  const int before = lowbit_cpu_isa();
  for (int isa = 0; isa < lowbit_num_cpu_isas(); ++isa) {
    if (!lowbit_cpu_isa_supported(isa)) continue;
    CHECK_EQ(lowbit_set_cpu_isa(isa), LOWBIT_OK);
    for (int32_t i = 0; i < lowbit_num_kernels(); ++i) {
      lowbit_kernel_info info;
      CHECK_EQ(lowbit_kernel_get(i, &info), LOWBIT_OK);
      if (info.device == LOWBIT_CPU && level_of(info.isa) > isa)
        CHECK(!info.runnable, "%s under %s", info.name, lowbit_cpu_isa_name(isa));
    }
  }
  lowbit_set_cpu_isa(before);
}
