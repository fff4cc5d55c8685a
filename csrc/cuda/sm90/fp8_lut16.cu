// fp8 on sm_90 with 4-bit weights: e2m1 (fp4, mxfp4, nvfp4) and int4 by e4m3, in registers.
#include "cuda/sm90/fp8_groups.h"
#include "cuda/sm90/host.h"

namespace lowbit::cuda::sm90 {
namespace {

template <int Consumers, int Columns, int Stages, int Cluster, int ScaleBytes = 0>
using nibble_tile = tile<e4m3_t, 1, 4, Consumers, Columns, Stages, Cluster, ScaleBytes>;

using whole_16 = nibble_tile<1, 16, 16, 1>;
using whole_64 = nibble_tile<1, 64, 12, 1>;
using whole_128 = nibble_tile<2, 128, 6, 2>;
using whole_256 = nibble_tile<2, 256, 4, 2>;
// A stage of 128 columns has 4 groups of 32 or 8 of 16; scales of up to 4 bytes.
constexpr int group_scales = 8 * 64 * 4;
using group_16 = nibble_tile<1, 16, 16, 1, group_scales>;
using group_64 = nibble_tile<1, 64, 12, 1, group_scales>;
using group_128 = nibble_tile<2, 128, 6, 2, group_scales>;

bool is_int4(const format_row& f) { return f.bits == 4 && f.integer_offset == 8; }
bool is_e2m1(const format_row& f) {
  constexpr float magnitudes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (int i = 0; i < 16; ++i)
    if (f.bits != 4 || f.values[i] != (i < 8 ? magnitudes[i] : -magnitudes[i - 8])) return false;
  return true;
}

const char* common_refusal(const gemm_problem& p, bool int4) {
  if (p.x_dtype != LOWBIT_E4M3) return "x is not e4m3";
  if (int4 ? !is_int4(*p.w.format) : !is_e2m1(*p.w.format)) return "decodes another 4-bit format";
  if (p.w.zero_points()) return "W has zero points";
  return nullptr;
}

template <class T, class Load, bool blocks>
lowbit_status run(const gemm_problem& p, const device_info& device) {
  byte_x_arguments a{};
  if (const lowbit_status status = make_operands<T>(p, &a.in)) return status;
  fp8_scales<T>(p, &a);
  return launch<byte_x_kernel<T, Load, float, blocks>>(shape_of_launch<T>(a.in, p, device), a);
}

template <class T, int group>
lowbit_status run_groups(const gemm_problem& p, const device_info& device) {
  group_arguments a{};
  if (const lowbit_status status = make_operands<T>(p, &a.common.in)) return status;
  a.common.out = make_outputs(p);
  a.common.out.column_scale = p.x_scale;
  a.common.out.one_column_scale = p.num_x_scales == 1;
  a.scale_dtype = p.w.scale_dtype;
  if (p.w.scale_dtype == LOWBIT_E8M0) {
    const fragment_shape& s = p.w.shape;
    auto* const bases = reinterpret_cast<int32_t*>(static_cast<uint8_t*>(p.workspace) + gather_workspace<1>(p, device));
    a.bases = bases;
    const rebase_arguments rebase{p.w.codes(), static_cast<const uint8_t*>(p.w.scales()), static_cast<int>(s.groups),
                                  static_cast<int>(s.tiles), bases};
    const launch_shape shape{
        .grid_x = static_cast<int>(s.strips), .threads = rebase_threads, .shared_bytes = 64 * 4, .stream = p.stream};
    if (const lowbit_status status = launch<rebase_kernel>(shape, rebase)) return status;
  }
  return launch<group_kernel<T, group>>(shape_of_launch<T>(a.common.in, p, device), a);
}

template <class T, bool int4>
const char* refuses_fast(const gemm_problem& p, const device_info& device) {
  if (const char* reason = common_refusal(p, int4)) return reason;
  if (p.accumulate == accumulation::promoted) return "sums are to be promoted to fp32 every 128 columns";
  if (fp8_in_blocks(p)) return "scales change along K";
  return model_refusal<T, whole_16, whole_64, whole_128, whole_256>(p, device);
}

template <class T, bool int4>
const char* refuses_blocks(const gemm_problem& p, const device_info& device) {
  if (const char* reason = common_refusal(p, int4)) return reason;
  if (const char* reason = fp8_blocks_refusal(p)) return reason;
  return model_refusal<T, whole_16, whole_64, whole_128>(p, device, fp8_promotion(p));
}

template <class T, int group>
const char* refuses_groups(const gemm_problem& p, const device_info& device) {
  if (const char* reason = common_refusal(p, false)) return reason;
  if (p.x_group) return "scales of x change along K";
  if (p.w.shape.groups == 1 || p.w.shape.group_k != group) return "scales of W are for other groups";
  return model_refusal<T, group_16, group_64, group_128>(p, device);
}

int64_t bases_workspace(const gemm_problem& p, const device_info& device) {
  return gather_workspace<1>(p, device) + (p.w.scale_dtype == LOWBIT_E8M0 ? p.w.shape.strips * 64 * 4 : 0);
}

template <class T, class Load, bool blocks>
constexpr kernel_row row(const char* name) {
  constexpr bool int4 = __is_same(Load, load_int4_e4m3);
  return {name,
          LOWBIT_FP8,
          90,
          90,
          bit(recipe::lut16),
          bit(LOWBIT_E4M3),
          T::columns,
          T::strips * 64,
          T::stage_k,
          true,
          blocks ? refuses_blocks<T, int4> : refuses_fast<T, int4>,
          gather_workspace<1>,
          run<T, Load, blocks>};
}

template <class T, int group>
constexpr kernel_row group_row(const char* name) {
  return {name,
          LOWBIT_FP8,
          90,
          90,
          bit(recipe::lut16),
          bit(LOWBIT_E4M3),
          T::columns,
          T::strips * 64,
          T::stage_k,
          true,
          refuses_groups<T, group>,
          bases_workspace,
          run_groups<T, group>};
}

}  // namespace

extern const kernel_row fp8_lut16_rows[] = {
    group_row<group_16, 32>("fp8_e2m1_group32_sm90_16x64"),
    group_row<group_64, 32>("fp8_e2m1_group32_sm90_64x64"),
    group_row<group_128, 32>("fp8_e2m1_group32_sm90_128x128"),
    group_row<group_16, 16>("fp8_e2m1_group16_sm90_16x64"),
    group_row<group_64, 16>("fp8_e2m1_group16_sm90_64x64"),
    group_row<group_128, 16>("fp8_e2m1_group16_sm90_128x128"),
    row<whole_16, load_e2m1, false>("fp8_e2m1_fast_sm90_16x64"),
    row<whole_64, load_e2m1, false>("fp8_e2m1_fast_sm90_64x64"),
    row<whole_128, load_e2m1, false>("fp8_e2m1_fast_sm90_128x128"),
    row<whole_256, load_e2m1, false>("fp8_e2m1_fast_sm90_256x128"),
    row<whole_16, load_e2m1, true>("fp8_e2m1_promoted_sm90_16x64"),
    row<whole_64, load_e2m1, true>("fp8_e2m1_promoted_sm90_64x64"),
    row<whole_128, load_e2m1, true>("fp8_e2m1_promoted_sm90_128x128"),
    row<whole_16, load_int4_e4m3, false>("fp8_int4_fast_sm90_16x64"),
    row<whole_64, load_int4_e4m3, false>("fp8_int4_fast_sm90_64x64"),
    row<whole_128, load_int4_e4m3, false>("fp8_int4_fast_sm90_128x128"),
    row<whole_256, load_int4_e4m3, false>("fp8_int4_fast_sm90_256x128"),
    row<whole_16, load_int4_e4m3, true>("fp8_int4_promoted_sm90_16x64"),
    row<whole_64, load_int4_e4m3, true>("fp8_int4_promoted_sm90_64x64"),
    row<whole_128, load_int4_e4m3, true>("fp8_int4_promoted_sm90_128x128"),
};
extern const int num_fp8_lut16_rows = sizeof fp8_lut16_rows / sizeof fp8_lut16_rows[0];

}  // namespace lowbit::cuda::sm90
