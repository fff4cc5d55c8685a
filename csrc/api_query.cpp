// The C API: what is here. Formats, kernels, CPU levels, CUDA devices, and which kernel a problem gets.
#include "api.h"

#include "cuda/device.h"
#include "dispatch/cpu.h"
#include "dispatch/cuda.h"

using namespace lowbit;

namespace {

// Kernels have one numbering: the CPU's, worst first, then CUDA's, worst first.
int32_t num_cpu_kernels() {
  int32_t count = 0;
  for (int isa = 0; isa < num_cpu_isas(); ++isa) count += cpu_isa_at(isa).num_kernels;
  return count;
}

bool runs_on_some_device(const cuda::kernel_row& row) {
  for (int i = 0; i < cuda::num_usable_devices(); ++i)
    if (!cuda::arch_refusal(row, cuda::usable_device(i).info)) return true;
  return false;
}

using visitor = void (*)(void* context, int32_t kernel, int32_t chosen, const char* reason);

lowbit_status explain_cpu(const lowbit_problem& problem, visitor visit, void* context) {
  const kernel_row* chosen = select_kernel(problem);
  int32_t first = num_cpu_kernels();
  for (int isa = num_cpu_isas() - 1; isa >= 0; --isa) {  // best first, as select_kernel walks
    const cpu_isa& level = cpu_isa_at(isa);
    first -= level.num_kernels;
    for (int i = 0; i < level.num_kernels; ++i) {
      const kernel_row& row = level.kernels[i];
      if (row.family != problem.family) continue;
      const char* reason = refusal(isa, row, problem);
      visit(context, first + i, &row == chosen, &row == chosen ? "" : reason ? reason : "a better one runs");
    }
  }
  return LOWBIT_OK;
}

lowbit_status explain_cuda(const lowbit_problem& problem, visitor visit, void* context) {
  cuda::device_info device{};
  const char* no_device = nullptr;  // why no kernel can run
  if (problem.arch == 0) {
    if (cuda::current_device_info(&device)) no_device = last_error();
  } else if (const lowbit_status status = cuda::typical_device(problem.arch, &device)) {
    return status;
  }
  cuda::gemm_problem p{};
  p.w.format = &format_at(problem.format);
  p.w.shape = fragment_shape::of(problem.n, problem.k, problem.group_n ? problem.group_n : 1, problem.group_k,
                                 p.w.format->bits);
  p.m = problem.m;
  p.x_dtype = cuda::kernel_dtype(problem.family, problem.x_dtype);
  p.x_stride = problem.k;
  p.y_stride = problem.n;
  p.x_group = problem.x_group;
  p.accumulate = static_cast<cuda::accumulation>(problem.accumulation);
  const cuda::kernel_row* chosen = no_device ? nullptr : cuda::select_kernel(problem.family, p, device);
  for (int i = cuda::num_kernels() - 1; i >= 0; --i) {
    const cuda::built_kernel& kernel = cuda::kernel_at(i);
    if (kernel.row->family != problem.family) continue;
    const bool is_chosen = kernel.row == chosen;
    const char* reason = no_device ? no_device : cuda::refusal(*kernel.row, problem.family, p, device);
    visit(context, num_cpu_kernels() + i, is_chosen, is_chosen ? "" : reason ? reason : "a better one runs");
  }
  return LOWBIT_OK;
}

}  // namespace

int32_t lowbit_num_kernels(void) { return num_cpu_kernels() + cuda::num_kernels(); }

lowbit_status lowbit_kernel_get(int32_t index, lowbit_kernel_info* info) {
  if (index < 0 || index >= lowbit_num_kernels())
    return fail(LOWBIT_INVALID_VALUE, "kernel %d: there are %d", index, lowbit_num_kernels());
  if (index >= num_cpu_kernels()) {
    const cuda::built_kernel& kernel = cuda::kernel_at(index - num_cpu_kernels());
    const cuda::kernel_row& row = *kernel.row;
    *info = {row.name,   kernel.compute, row.family,          row.mr,
             row.nr,     row.kr,         row.batch_invariant, runs_on_some_device(row),
             LOWBIT_CUDA};
    return LOWBIT_OK;
  }
  int isa = 0;
  for (; index >= cpu_isa_at(isa).num_kernels; ++isa) index -= cpu_isa_at(isa).num_kernels;
  const kernel_row& row = cpu_isa_at(isa).kernels[index];
  const bool runnable = isa <= current_cpu_isa() && cpu_isa_supported(isa) && cpu_has(row.features);
  *info = {row.name, cpu_isa_at(isa).name, row.family, row.mr,    row.nr,
           row.kr,   row.batch_invariant,  runnable,   LOWBIT_CPU};
  return LOWBIT_OK;
}

lowbit_status lowbit_explain(const lowbit_problem* problem,
                             void (*visit)(void* context, int32_t kernel, int32_t chosen, const char* reason),
                             void* context) {
  if (problem->format < 0 || problem->format >= num_formats()) return api::bad_format(problem->format);
  if (problem->m < 0 || problem->n < 1 || problem->k < 1 || problem->group_k < 1 || problem->group_n < 0)
    return fail(LOWBIT_INVALID_VALUE,
                "m = %lld, n = %lld, k = %lld, groups of %lld x %lld: m and group_n at least 0, "
                "the others at least 1",
                static_cast<long long>(problem->m), static_cast<long long>(problem->n),
                static_cast<long long>(problem->k), static_cast<long long>(problem->group_n),
                static_cast<long long>(problem->group_k));
  if (problem->device == LOWBIT_CUDA) return explain_cuda(*problem, visit, context);
  return explain_cpu(*problem, visit, context);
}

int32_t lowbit_num_cpu_isas(void) { return num_cpu_isas(); }
const char* lowbit_cpu_isa_name(int32_t isa) { return isa >= 0 && isa < num_cpu_isas() ? cpu_isa_at(isa).name : ""; }
int32_t lowbit_cpu_isa_supported(int32_t isa) { return isa >= 0 && isa < num_cpu_isas() && cpu_isa_supported(isa); }
int32_t lowbit_cpu_isa(void) { return current_cpu_isa(); }
lowbit_status lowbit_set_cpu_isa(int32_t isa) { return set_cpu_isa(isa); }
const char* lowbit_cpu_features(void) { return cpu_feature_list(); }

void lowbit_cuda_get(lowbit_cuda_info* info) {
  const char* problem = cuda::why_none_runs();
  *info = {cuda::architectures(), problem ? problem : "", cuda::num_usable_devices()};
}

lowbit_status lowbit_cuda_device_get(int32_t device, lowbit_cuda_device_info* info) {
  if (device < 0 || device >= cuda::num_usable_devices())
    return fail(LOWBIT_INVALID_VALUE, "CUDA device %d: there are %d", device, cuda::num_usable_devices());
  const cuda::device& d = cuda::usable_device(device);
  *info = {d.name, d.info.arch, d.info.sms, d.info.shared_bytes, d.info.l2_bytes, d.memory_bytes};
  return LOWBIT_OK;
}
