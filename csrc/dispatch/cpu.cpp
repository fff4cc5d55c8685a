#include "dispatch/cpu.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace lowbit {

#define LOWBIT_CPU_ISA(isa, features) \
  namespace cpu::isa {                \
  extern const kernel_row kernels[];  \
  extern const int num_kernels;       \
  }
#include "dispatch/cpu_isas.inc"
#undef LOWBIT_CPU_ISA

namespace {

// ---- features ----

struct feature {
  const char* name;
  bool present;
};

#if defined(__x86_64__)

// Features whose instructions this build emulates, for tests: there on every processor.
#ifdef LOWBIT_EMULATE_CPU
constexpr const char* emulated_features = " avx_vnni amx_tile amx_int8 amx_bf16 ";
#else
constexpr const char* emulated_features = "";
#endif

struct cpuid_leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  cpuid_leaf(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

uint64_t enabled_state() {  // XCR0: which registers the operating system saves
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux gives the tile data registers (state component 18) only on request, once for the process.
bool request_tile_permission() {
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

// VDPBF16PS runs at the rate of FMA, so at twice its multiply-adds, on AMD's processors (measured on Zen 4: 464 and 233
// GFLOPS of two cores). On Intel's that have it beside AMX it runs at half the rate.
bool is_amd() {
  const cpuid_leaf vendor(0, 0);
  return vendor.b == 0x68747541 && vendor.d == 0x69746e65 && vendor.c == 0x444d4163;  // "AuthenticAMD"
}

constexpr bool has_bit(unsigned word, int i) { return word >> i & 1; }

struct feature_table {
  feature rows[15];
  feature_table() {
    const cpuid_leaf l1(1, 0), l7(7, 0), l71(7, 1);
    const uint64_t state = has_bit(l1.c, 27) ? enabled_state() : 0;
    const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
    const bool tiles = (state >> 17 & 3) == 3 && has_bit(l7.d, 24) && request_tile_permission();
    const feature all[] = {
        {"avx2", ymm && has_bit(l7.b, 5)},
        {"fma", ymm && has_bit(l1.c, 12)},
        {"f16c", ymm && has_bit(l1.c, 29)},
        {"avx_vnni", ymm && has_bit(l71.a, 4)},
        {"avx512f", zmm && has_bit(l7.b, 16)},
        {"avx512bw", zmm && has_bit(l7.b, 30)},
        {"avx512dq", zmm && has_bit(l7.b, 17)},
        {"avx512vl", zmm && has_bit(l7.b, 31)},
        {"avx512_vnni", zmm && has_bit(l7.c, 11)},
        {"avx512_vbmi", zmm && has_bit(l7.c, 1)},
        {"avx512_bf16", zmm && has_bit(l71.a, 5)},
        {"fast_avx512_bf16", zmm && has_bit(l71.a, 5) && is_amd()},
        {"amx_tile", tiles},
        {"amx_int8", tiles && has_bit(l7.d, 25)},
        {"amx_bf16", tiles && has_bit(l7.d, 22)},
    };
    std::memcpy(rows, all, sizeof rows);
    for (feature& f : rows) f.present = f.present || std::strstr(emulated_features, f.name);
  }
};

#elif defined(__aarch64__)

// The kernel's names (/proc/cpuinfo). It lists a feature only where it saves the registers.
struct feature_table {
  const unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(AT_HWCAP2);
  feature rows[4] = {
      {"asimd", (hwcap & HWCAP_ASIMD) != 0},
      {"asimddp", (hwcap & HWCAP_ASIMDDP) != 0},
      {"i8mm", (hwcap2 & HWCAP2_I8MM) != 0},
      {"bf16", (hwcap2 & HWCAP2_BF16) != 0},
  };
};

#else

struct feature_table {
  feature rows[1] = {{"baseline", true}};
};

#endif

const feature_table& features() {
  static const feature_table table;
  return table;
}

bool has_feature(const char* name, size_t length) {
  for (const feature& f : features().rows)
    if (std::strlen(f.name) == length && std::strncmp(f.name, name, length) == 0) return f.present;
  return false;
}

// ---- levels ----

#define LOWBIT_CPU_ISA(isa, features) {#isa, features, cpu::isa::kernels, cpu::isa::num_kernels},
const cpu_isa isas[] = {
#include "dispatch/cpu_isas.inc"
};
#undef LOWBIT_CPU_ISA
constexpr int isa_count = static_cast<int>(sizeof isas / sizeof isas[0]);

// What of the levels this processor has, found once: every product asks.
struct supported_levels {
  struct {
    bool supported;
    std::vector<bool> rows;  // has the features of the kernel rows
  } levels[isa_count];
  supported_levels() {
    for (int i = 0; i < isa_count; ++i) {
      levels[i].supported = cpu_has(isas[i].features);
      for (int row = 0; row < isas[i].num_kernels; ++row)
        levels[i].rows.push_back(cpu_has(isas[i].kernels[row].features));
    }
  }
};

const supported_levels& machine() {
  static const supported_levels table;
  return table;
}

// The best supported level, no better than LOWBIT_CPU_ISA names. The core prints nothing: an
// unknown name caps nothing, and the Python package refuses to load with one.
int initial_isa() {
  int cap = isa_count - 1;
  if (const char* wanted = std::getenv("LOWBIT_CPU_ISA"))
    for (int i = 0; i < isa_count; ++i)
      if (std::strcmp(isas[i].name, wanted) == 0) cap = i;
  for (int i = cap; i > 0; --i)
    if (cpu_isa_supported(i)) return i;
  return 0;
}

std::atomic<int>& current() {
  static std::atomic<int> isa{initial_isa()};
  return isa;
}

}  // namespace

int num_cpu_isas() { return isa_count; }
const cpu_isa& cpu_isa_at(int index) { return isas[index]; }

bool cpu_has(const char* list) {
  for (const char* p = list; *p;) {
    const size_t length = std::strcspn(p, " ");
    if (length && !has_feature(p, length)) return false;
    p += length + (p[length] == ' ');
  }
  return true;
}

bool cpu_isa_supported(int index) { return machine().levels[index].supported; }
int current_cpu_isa() { return current().load(std::memory_order_relaxed); }

lowbit_status set_cpu_isa(int index) {
  if (index < 0 || index >= isa_count)
    return fail(LOWBIT_INVALID_VALUE, "CPU level %d: there are %d", index, isa_count);
  if (!cpu_isa_supported(index))
    return fail(LOWBIT_UNSUPPORTED, "this processor cannot run level '%s': it needs %s and has %s", isas[index].name,
                isas[index].features, cpu_feature_list());
  current().store(index, std::memory_order_relaxed);
  return LOWBIT_OK;
}

const char* cpu_feature_list() {
  static const struct text {
    char list[256] = "";
    text() {
      size_t used = 0;
      for (const feature& f : features().rows)
        if (f.present)
          used += static_cast<size_t>(std::snprintf(list + used, sizeof list - used, "%s%s", used ? " " : "", f.name));
    }
  } t;
  return t.list;
}

namespace {

// Why a row does not run the problem: say(reason with %s, a word of it), or false where it does.
template <class Say>
bool refused(int isa, const kernel_row& row, const lowbit_problem& problem, const Say& say) {
  const format_row& format = format_at(problem.format);
  if (row.family != problem.family) return say("another family", "");
  if (!cpu_isa_supported(isa)) return say("this processor lacks its level (%s)", isas[isa].name);
  if (isa > current_cpu_isa()) return say("the level in use is capped below it (%s)", isas[isa].name);
  if (!machine().levels[isa].rows[static_cast<size_t>(&row - isas[isa].kernels)]) return say("needs %s", row.features);
  if (problem.family == LOWBIT_INTEGER && !format.integer()) return say("%s is no integer format", format.name);
  if (!(row.recipes & bit(format.decode))) return say("does not decode %s", format.name);
  if (format.minimum && !(row.recipes & minima)) return say("does not add the minima of %s", format.name);
  if (format.two_levels() && !(row.recipes & two_levels))
    return say("does not make scales of two levels (%s)", format.name);
  if (!(row.x_dtypes & bit(problem.x_dtype))) return say("does not take %s activations", dtype_name(problem.x_dtype));
  return false;
}

}  // namespace

const char* refusal(int isa, const kernel_row& row, const lowbit_problem& problem) {
  static thread_local char reason[256];
  const auto say = [](const char* text, const char* word) {
    std::snprintf(reason, sizeof reason, text, word);
    return true;
  };
  return refused(isa, row, problem, say) ? reason : nullptr;
}

const kernel_row* select_kernel(const lowbit_problem& problem) {
  const auto silent = [](const char*, const char*) { return true; };  // every product asks: text would cost 1 us
  for (int isa = current_cpu_isa(); isa >= 0; --isa)
    for (int i = 0; i < isas[isa].num_kernels; ++i)
      if (!refused(isa, isas[isa].kernels[i], problem, silent)) return &isas[isa].kernels[i];
  return nullptr;
}

}  // namespace lowbit
