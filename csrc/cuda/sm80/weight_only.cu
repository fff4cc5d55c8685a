#include "cuda/sm80/weight_only.h"

#include <cstdio>

#include "cuda/common/launch.h"
#include "cuda/sm80/weight_only_host.h"

namespace lowbit::cuda::sm80 {
namespace {

// ---- the second kernel, where CTAs did one slice each -----------------------------------------------------------

constexpr int reduce_threads = 256;

LOWBIT_KERNEL(reduce_threads, 4)
void weight_only_reduce(const arguments a) {
  grid_dependency_wait();
  const int fours = a.rows_packed / 4;
  const int64_t item = static_cast<int64_t>(cta_index()) * reduce_threads + thread_index();
  const int64_t m = item / fours;
  const int n = static_cast<int>(item - m * fours) * 4;
  if (m >= a.m || n >= a.n) return;
  float total[4] = {0, 0, 0, 0};
  for (int slice = 0; slice < a.slices; ++slice) {
    const u32x4 v = global_load<u32x4>(a.partials + (slice * a.m + m) * a.rows_packed + n);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) total[i] += as_float(words[i]);
  }
  store_outputs(a, output_terms(a, n), static_cast<int>(m), n,
                {as_u32(total[0]), as_u32(total[1]), as_u32(total[2]), as_u32(total[3])});
}

// ---- tiles ------------------------------------------------------------------------------------------------------

template <int WarpsN, int WarpsM, int TilesM, bool Producer>
struct tile {
  template <class T, class Codes>
  using config = weight_only_config<T, Codes, WarpsN, WarpsM, TilesM, Producer>;
  using any = config<bf16_t, int8_codes>;
  static constexpr tile_traits traits{any::rows, any::columns, WarpsN * WarpsM};
};

using m16 = tile<8, 1, 2, true>;
using m32 = tile<8, 1, 4, true>;
using m64 = tile<4, 2, 4, true>;
using m128 = tile<4, 2, 8, false>;
template <class C>
lowbit_status start(const gemm_problem& p, const device_info& device, bool split) {
  arguments a = make_arguments<C>(p);
  a.split = split;
  const bool wait = sums_wait(p.w.shape, split);
  const launch_sizes sizes = sizes_of<C>(a, device, wait);
  a.stages = sizes.stages;
  if (wait) a.waiting_sums = a.stages * a.plan.bytes;
  launch_shape shape{};
  shape.grid_x = a.order.w_blocks * a.order.x_blocks;
  shape.grid_y = split ? a.slices : 1;
  shape.grid_z = 1;
  shape.threads = C::threads;
  shape.cluster = 1;
  shape.shared_bytes = sizes.shared_bytes;
  shape.stream = p.stream;
  if (const lowbit_status status = launch<weight_only_kernel<C>>(shape, a)) return status;
  if (!split) return LOWBIT_OK;
  launch_shape reduce{};
  reduce.grid_x = static_cast<int>(ceil_div(p.m * (a.rows_packed / 4), reduce_threads));
  reduce.grid_y = reduce.grid_z = reduce.cluster = 1;
  reduce.threads = reduce_threads;
  reduce.stream = p.stream;
  reduce.dependent = device.arch >= 90;
  return launch<weight_only_reduce>(reduce, a);
}

template <class Tile>
lowbit_status run(const gemm_problem& p, const device_info& device) {
  const bool split = predict(Tile::traits, p.w.shape, p.m, device).split;
  const auto as = [&]<class T>(T) {
    switch (kind_of(*p.w.format)) {
      case code_kind::int4:
        return start<typename Tile::template config<T, integer_codes<4>>>(p, device, split);
      case code_kind::int2:
        return start<typename Tile::template config<T, integer_codes<2>>>(p, device, split);
      case code_kind::int8:
        return start<typename Tile::template config<T, int8_codes>>(p, device, split);
      case code_kind::minifloat:
        return start<typename Tile::template config<T, minifloat_codes>>(p, device, split);
      case code_kind::e2m1:
        return start<typename Tile::template config<T, e2m1_codes>>(p, device, split);
      default:
        return start<typename Tile::template config<T, table_codes>>(p, device, split);
    }
  };
  return p.x_dtype == LOWBIT_BF16 ? as(bf16_t{}) : as(f16_t{});
}

// ---- which tile -------------------------------------------------------------------------------------------------

// Why a tile cannot run a problem, or null.
template <class Tile>
const char* impossible(const gemm_problem& p, const device_info& device) {
  const bool wait = sums_wait(p.w.shape, predict(Tile::traits, p.w.shape, p.m, device).split);
  if (smallest_shared_bytes<typename Tile::any>(p, wait) > device.shared_bytes)
    return wait ? "two of its stages and the sums do not fit into shared memory"
                : "two of its stages do not fit into shared memory";
  return fits_a_grid(p, Tile::traits) ? nullptr : "more tiles than a grid holds";
}

struct candidate {
  tile_traits traits;
  const char* (*impossible)(const gemm_problem&, const device_info&);
};
constexpr candidate candidates[] = {{m16::traits, impossible<m16>},
                                    {m32::traits, impossible<m32>},
                                    {m64::traits, impossible<m64>},
                                    {m128::traits, impossible<m128>}};

// Why not this tile, or null.
template <class Tile>
const char* refuses(const gemm_problem& p, const device_info& device) {
  if (const char* reason = refused_by_every_tile(p)) return reason;
  if (const char* reason = impossible<Tile>(p, device)) return reason;
  const double own = predict(Tile::traits, p.w.shape, p.m, device).clocks;
  const tile_traits* best = nullptr;
  double fewest = own;
  for (const candidate& c : candidates) {
    const double clocks = predict(c.traits, p.w.shape, p.m, device).clocks;
    if (clocks >= fewest || c.impossible(p, device)) continue;
    fewest = clocks;
    best = &c.traits;
  }
  if (!best) return nullptr;
  static thread_local char reason[160];
  std::snprintf(reason, sizeof reason, "predicted to take %.0f clocks, the tile of %d rows of x by %d of W %.0f", own,
                best->columns, best->rows, fewest);
  return reason;
}

template <class Tile>
int64_t workspace(const gemm_problem& p, const device_info& device) {
  if (!predict(Tile::traits, p.w.shape, p.m, device).split) return 0;
  return slices_of(p.w.shape) * p.m * p.w.shape.strips * strip_rows * static_cast<int64_t>(sizeof(float));
}

template <class Tile>
constexpr kernel_row row(const char* name) {
  return {name,
          LOWBIT_WEIGHT_ONLY,
          80,
          999,
          all_recipes,
          bit(LOWBIT_F16) | bit(LOWBIT_BF16),
          Tile::traits.columns,
          Tile::traits.rows,
          step_columns,
          true,
          refuses<Tile>,
          workspace<Tile>,
          run<Tile>};
}

}  // namespace

extern const kernel_row weight_only_rows[] = {
    row<m16>("weight_only_mma_sm80_16x256"),
    row<m32>("weight_only_mma_sm80_32x256"),
    row<m64>("weight_only_mma_sm80_64x128"),
    row<m128>("weight_only_mma_sm80_128x128"),
};
extern const int num_weight_only_rows = static_cast<int>(sizeof weight_only_rows / sizeof *weight_only_rows);

}  // namespace lowbit::cuda::sm80
