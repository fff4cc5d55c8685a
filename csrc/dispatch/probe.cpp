// The machine's limits, measured. A limit is the median over slices of the wanted time: a shared machine's bursts of
// other work drop out, as they do from the median of a kernel's timings.
#include "gemm/probe.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "dispatch/cpu.h"

namespace lowbit {

#define LOWBIT_CPU_ISA(isa, features) \
  namespace cpu::isa {                \
  extern const probe_row probes[];    \
  extern const int num_probes;        \
  }
#include "dispatch/cpu_isas.inc"
#undef LOWBIT_CPU_ISA

namespace {

struct isa_probes {
  const probe_row* rows;
  int count;
};

// The best row for `what` at the level in use, or null.
const probe_row* select_probe(const char* what) {
#define LOWBIT_CPU_ISA(isa, features) {cpu::isa::probes, cpu::isa::num_probes},
  const isa_probes levels[] = {
#include "dispatch/cpu_isas.inc"
  };
#undef LOWBIT_CPU_ISA
  for (int isa = current_cpu_isa(); isa >= 0; --isa) {
    if (!cpu_isa_supported(isa)) continue;
    for (int i = 0; i < levels[isa].count; ++i)
      if (std::strcmp(levels[isa].rows[i].what, what) == 0 && cpu_has(levels[isa].rows[i].features))
        return &levels[isa].rows[i];
  }
  return nullptr;
}

double now() {
  using clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

constexpr int min_slices = 5, max_slices = 512;
constexpr double slice_seconds = 0.004;  // far above the microseconds that waking a pool takes

// Median rate of slice(), which does `work` each time, over about `seconds`.
template <class Slice>
double median_rate(double seconds, double work, const Slice& slice) {
  slice();  // warms up: pages, clocks, threads
  double rates[max_slices];
  int count = 0;
  const double end = now() + seconds;
  do {
    const double begin = now();
    slice();
    const double rate = work / (now() - begin);
    int at = count++;
    for (; at > 0 && rates[at - 1] > rate; --at) rates[at] = rates[at - 1];
    rates[at] = rate;
  } while (count < max_slices && (count < min_slices || now() < end));
  return rates[count / 2];
}

// Operations per second of `row` on all threads.
double multiply_rate(const probe_row& row, double seconds, const lowbit_parallel* parallel) {
  int64_t iterations = 1000;
  for (double took = 0; took < slice_seconds; iterations *= 2) {
    const double begin = now();
    row.run(iterations);
    took = now() - begin;
  }
  const int threads = num_threads(parallel);
  return median_rate(seconds, row.operations * static_cast<double>(iterations) * threads, [&] {
    parallel_for(parallel, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) row.run(iterations);
    });
  });
}

// ---- read bandwidth ----

// Read once from end to end by each slice. Measured on a machine that reports 480 MiB of shared L3: 256 MiB read 15 %
// faster than memory, 512 MiB 3 %, 1 GiB not at all; the benchmarks rotate their weights over as much.
constexpr size_t buffer_bytes = size_t{512} << 20;
// Bytes ahead of the load. The hardware's own prefetcher stops at the end of a 4 KiB page; this reaches into the next.
// Measured with 2 threads: none 28.7 GB/s, 1 KiB 29.8, 3 KiB 33.9, 5 KiB 34, 12 KiB 34; with 2 MiB pages 34 and 35.5.
constexpr size_t prefetch_bytes = 5120;
constexpr size_t read_unit = 4096;

// Reads `bytes`, a multiple of 64, and returns something of all of it.
uint64_t read_all(const uint64_t* p, size_t bytes) {
  uint64_t sum[8] = {};
  for (size_t i = 0; i < bytes / 8; i += 8) {
    __builtin_prefetch(reinterpret_cast<const char*>(p + i) + prefetch_bytes);
    for (size_t j = 0; j < 8; ++j) sum[j] += p[i + j];
  }
  for (size_t j = 1; j < 8; ++j) sum[0] += sum[j];
  return sum[0];
}

// Bytes per second on all threads, or a negative number when there is no memory for the buffer.
double read_rate(double seconds, const lowbit_parallel* parallel) {
  constexpr size_t huge_page = size_t{2} << 20;
  void* buffer = nullptr;
  if (posix_memalign(&buffer, huge_page, buffer_bytes)) return -1;
#if defined(__linux__)
  madvise(buffer, buffer_bytes, MADV_HUGEPAGE);  // a hint: the rate is 5 % lower without
#endif
  const auto for_parts = [&](const auto& body) {  // body(first byte, bytes) on all threads
    parallel_for(parallel, buffer_bytes / read_unit, [&](int64_t begin, int64_t end) {
      body(static_cast<char*>(buffer) + static_cast<size_t>(begin) * read_unit,
           static_cast<size_t>(end - begin) * read_unit);
    });
  };
  for_parts([](char* p, size_t bytes) { std::memset(p, 1, bytes); });
  const double rate = median_rate(seconds, static_cast<double>(buffer_bytes), [&] {
    for_parts([](const char* p, size_t bytes) {
      volatile uint64_t kept = read_all(reinterpret_cast<const uint64_t*>(p), bytes);
      (void)kept;
    });
  });
  std::free(buffer);
  return rate;
}

}  // namespace
}  // namespace lowbit

lowbit_status lowbit_probe(const char* what, double seconds, const lowbit_parallel* parallel, double* result) {
  using namespace lowbit;
  if (!(seconds > 0 && seconds <= 60))
    return fail(LOWBIT_INVALID_VALUE, "a probe of %g seconds: more than 0 and at most 60", seconds);
  if (std::strcmp(what, "read_bandwidth") == 0) {
    const double rate = read_rate(seconds, parallel);
    if (rate < 0)
      return fail(LOWBIT_OUT_OF_MEMORY, "no memory for the %zu MiB that the bandwidth probe reads", buffer_bytes >> 20);
    *result = rate;
    return LOWBIT_OK;
  }
  if (const probe_row* row = select_probe(what)) {
    *result = multiply_rate(*row, seconds, parallel);
    return LOWBIT_OK;
  }
  for (const char* known : {"f32", "bf16", "int8"})
    if (std::strcmp(what, known) == 0)
      return fail(LOWBIT_UNSUPPORTED, "level %s of this processor has no %s multiplier",
                  cpu_isa_at(current_cpu_isa()).name, what);
  return fail(LOWBIT_INVALID_VALUE, "there is no probe '%s': read_bandwidth, f32, bf16 or int8", what);
}
