// What the core knows: formats, kernels, this machine, this build.
#include <pybind11/stl.h>

#include <sstream>

#include "call.h"
#include "threads.h"

namespace lowbit_python {
namespace {

std::vector<std::string> words(const char* text) {
  std::istringstream stream(text);
  std::vector<std::string> list;
  for (std::string word; stream >> word;) list.push_back(word);
  return list;
}

py::list activation_formats() {
  py::list list;
  for (int32_t i = 0; i < lowbit_num_activation_formats(); ++i) {
    lowbit_activation_format_info f;
    check(lowbit_activation_format_get(static_cast<lowbit_activation_format>(i), &f));
    py::dict row;
    row["name"] = f.name;
    row["bits"] = f.bits;
    row["block"] = f.block;
    row["scale_dtype"] = dtype_name(f.scale_dtype);
    list.append(row);
  }
  return list;
}

py::list formats() {
  py::list list;
  for (lowbit_format f = 0; f < lowbit_num_formats(); ++f) {
    const lowbit_format_info i = info_of(f);
    py::dict row;
    row["name"] = i.name;
    row["bits"] = i.bits;
    row["block_n"] = i.block_n;
    row["block_k"] = i.block_k;
    row["scale_dtype"] =
        i.scale_dtype < 0 ? py::object(py::none()) : py::str(dtype_name(static_cast<lowbit_dtype>(i.scale_dtype)));
    row["zero_point"] = i.has_zero_point != 0;
    row["global_scale"] = i.has_global_scale != 0;
    row["values"] = py::array_t<float>(py::ssize_t{1} << i.bits, i.values);
    row["integer"] = i.is_integer != 0;
    row["signed_scales"] = i.has_signed_scales != 0;
    row["minimum"] = i.has_min != 0;
    row["super_groups"] = i.super_groups;
    row["super_dtype"] = dtype_name(static_cast<lowbit_dtype>(i.super_dtype));
    row["super_flat"] = i.super_flat != 0;
    row["scale_values"] = i.scale_values ? py::object(py::array_t<float>(256, i.scale_values)) : py::object(py::none());
    list.append(row);
  }
  return list;
}

lowbit_kernel_info kernel_at(int32_t index) {
  lowbit_kernel_info info;
  check(lowbit_kernel_get(index, &info));
  return info;
}

py::list kernels() {
  py::list list;
  for (int32_t i = 0; i < lowbit_num_kernels(); ++i) {
    const lowbit_kernel_info k = kernel_at(i);
    py::dict row;
    row["name"] = k.name;
    row["isa"] = k.isa;
    row["family"] = family_names[k.family];
    row["mr"] = k.mr;
    row["nr"] = k.nr;
    row["kr"] = k.kr;
    row["batch_invariant"] = k.batch_invariant != 0;
    row["runnable"] = k.runnable != 0;
    row["device"] = device_names[k.device];
    list.append(row);
  }
  return list;
}

py::list explain(const std::string& family, const std::string& format, int64_t m, int64_t n, int64_t k, int64_t group_k,
                 const std::string& x_dtype, const std::string& device, int32_t arch, int64_t group_n, int64_t x_group,
                 const std::string& accum) {
  lowbit_problem problem{};
  problem.family = family_called(family);
  problem.format = format_called(format);
  problem.m = m;
  problem.n = n;
  problem.k = k;
  problem.group_k = group_k;
  problem.x_dtype = dtype_called(x_dtype, "x_dtype");
  problem.device = called<lowbit_device>(device, "device", device_names);
  problem.arch = arch;
  problem.group_n = group_n;
  problem.x_group = x_group;
  problem.accumulation = called<lowbit_accumulation>(accum, "accum", accumulation_names);
  py::list list;
  const auto visit = [](void* context, int32_t kernel, int32_t chosen, const char* reason) {
    py::dict row;
    row["kernel"] = kernel_at(kernel).name;
    row["chosen"] = chosen != 0;
    row["reason"] = reason;
    static_cast<py::list*>(context)->append(row);
  };
  check(lowbit_explain(&problem, visit, &list));
  return list;
}

py::dict cuda() {
  lowbit_cuda_info info;
  lowbit_cuda_get(&info);
  py::list devices;
  for (int32_t i = 0; i < info.num_devices; ++i) {
    lowbit_cuda_device_info d;
    check(lowbit_cuda_device_get(i, &d));
    py::dict row;
    row["name"] = d.name;
    row["arch"] = d.arch;
    row["sms"] = d.sms;
    row["shared_bytes"] = d.shared_bytes;
    row["l2_bytes"] = d.l2_bytes;
    row["memory_bytes"] = d.memory_bytes;
    devices.append(row);
  }
  py::dict result;
  result["architectures"] = words(info.architectures);
  result["problem"] = info.problem;
  result["devices"] = devices;
  return result;
}

py::list cpu_isas() {
  py::list list;
  for (int32_t i = 0; i < lowbit_num_cpu_isas(); ++i) {
    py::dict row;
    row["name"] = lowbit_cpu_isa_name(i);
    row["supported"] = lowbit_cpu_isa_supported(i) != 0;
    list.append(row);
  }
  return list;
}

void set_cpu_isa(const std::string& name) {
  std::string known;
  for (int32_t i = 0; i < lowbit_num_cpu_isas(); ++i) {
    if (name == lowbit_cpu_isa_name(i)) return check(lowbit_set_cpu_isa(i));
    known += (i ? ", " : "") + std::string(lowbit_cpu_isa_name(i));
  }
  throw py::value_error("CPU level is '" + name + "': it must be one of " + known);
}

py::dict build_info() {
  const auto optional = [](const char* text) { return *text ? py::object(py::str(text)) : py::object(py::none()); };
  py::dict info;
  info["version"] = LOWBIT_VERSION;
  info["compiler"] = LOWBIT_COMPILER;
  info["sanitize"] = optional(LOWBIT_SANITIZE);
  info["torch"] = optional(LOWBIT_TORCH_VERSION);
  info["torch_floor"] = optional(LOWBIT_TORCH_FLOOR);
  info["emulated"] = static_cast<bool>(LOWBIT_EMULATED);
  return info;
}

double probe(const std::string& what, double seconds, int num_threads) {
  const lowbit_parallel parallel = threads(num_threads);
  double result;
  unlocked([&] { return lowbit_probe(what.c_str(), seconds, &parallel, &result); });
  return result;
}

}  // namespace

void add_queries(py::module_& m) {
  using py::arg;

  m.def("version", &lowbit_version, "Version of liblowbit.so.");
  m.def("build_info", &build_info,
        "How this module was built: version, compiler, sanitize, torch, torch_floor, emulated.");
  m.def("formats", &formats,
        "The number formats: name, bits, block_n, block_k, scale_dtype, zero_point, global_scale, values, integer, "
        "signed_scales, minimum, super_groups, super_dtype, super_flat, scale_values.");
  m.def("activation_formats", &activation_formats,
        "What activations are quantized to: name, bits, block (columns that share a scale; 0: all), scale_dtype.");
  m.def("kernels", &kernels, "Every kernel: name, isa, family, mr, nr, kr, batch_invariant, runnable, device.");
  m.def(
      "explain", &explain, arg("family"), arg("format"), arg("m"), arg("n"), arg("k"), arg("group_k"), arg("x_dtype"),
      arg("device") = "cpu", arg("arch") = 0, arg("group_n") = 1, arg("x_group") = 0, arg("accum") = "promoted",
      "The kernels of a family for a problem, best first: kernel, chosen, reason it is not. device='cuda': on a device "
      "of compute capability arch / 10, or (0) the current one.");
  m.def("cuda", &cuda,
        "The CUDA side: architectures built for, problem (why none of its kernels runs here, or ''), devices.");
  m.def("cpu_isas", &cpu_isas, "The CPU levels, worst first: name, supported.");
  m.def("cpu_isa", [] { return lowbit_cpu_isa_name(lowbit_cpu_isa()); }, "The CPU level in use.");
  m.def("set_cpu_isa", &set_cpu_isa, arg("name"), "Uses another CPU level. Not while kernels run.");
  m.def("cpu_features", [] { return words(lowbit_cpu_features()); }, "CPU features, as detected.");
  m.def("probe", &probe, arg("what"), arg("seconds") = 0.2, arg("num_threads") = 0,
        "Measures 'read_bandwidth' in bytes/s, or 'f32', 'bf16', 'int8' multiplication in operations/s.");
}

}  // namespace lowbit_python
