// Bulk copies from global to shared memory that arrive on an mbarrier (PTX ISA 9.7.9.25, cp.async.bulk and
// cp.async.bulk.tensor), and the maps that describe tensors to them. sm_90 and later.
#pragma once

#include <cudaTypedefs.h>

#include "cuda/common/barrier.h"
#include "cuda/common/memory.h"
#include "gemm/status.h"

namespace lowbit::cuda {

using tensor_map = CUtensorMap;  // 128 bytes, 64-byte aligned; a kernel takes it in LOWBIT_GRID_CONSTANT arguments

#define LOWBIT_GRID_CONSTANT __grid_constant__

// Where the L2 keeps what a copy brings (createpolicy's encodings).
LOWBIT_DEVICE uint64_t cache_policy(cache hint) {
  return hint == cache::streaming ? 0x12f0000000000000u
         : hint == cache::keep    ? 0x14f0000000000000u
                                  : 0x1000000000000000u;
}

// `bytes` consecutive bytes, a multiple of 16 like both addresses. One thread calls it.
template <cache hint = cache::normal>
LOWBIT_DEVICE void bulk_copy(uint32_t shared, const void* global, int bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(cache_policy(hint))
      : "memory");
}

// The map's box at (column, row). Elements outside the tensor are zeros and count as bytes.
template <cache hint = cache::normal>
LOWBIT_DEVICE void tensor_copy(uint32_t shared, const tensor_map& map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
      "%3}], "
      "[%4], %5;" ::"r"(shared),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(cache_policy(hint))
      : "memory");
}
// The same box to the same address in every CTA of the cluster whose bit is set; arrives on each one's barrier.
template <cache hint = cache::normal>
LOWBIT_DEVICE void tensor_copy_multicast(uint32_t shared, const tensor_map& map, int column, int row, uint32_t barrier,
                                         uint16_t ctas) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(shared),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(ctas), "l"(cache_policy(hint))
      : "memory");
}
LOWBIT_DEVICE void prefetch_map(const tensor_map& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Shared memory holds a box row after row, its 16-byte pieces permuted so that eight rows meet in no bank: within
// 1024-byte aligned blocks, bits 4-6 of the address are xored with bits 7-9 (PTX ISA 5.5.5, 128B swizzle).
constexpr uint32_t swizzle_128b(uint32_t offset) { return offset ^ (offset >> 7 & 7u) << 4; }

// A row-major matrix of 1- or 2-byte elements, `stride` bytes between rows; boxes of box_rows x 128 bytes, 128B
// swizzle.
inline lowbit_status make_tensor_map(tensor_map* map, int element_bytes, const void* data, int64_t columns,
                                     int64_t rows, int64_t stride, int box_rows) {
  static const auto encode = [] {  // the driver's, found at run time: the library loads where there is no driver
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000, cudaEnableDefault, &found);
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(address)
                                                : nullptr;
  }();
  if (!encode)
    return fail(LOWBIT_UNSUPPORTED, "the CUDA driver has no cuTensorMapEncodeTiled: 12.0 or later is needed");
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(128 / element_bytes), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result =
      encode(map, element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16, 2,
             const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    return fail(LOWBIT_INVALID_VALUE, "tensor map of %lld x %lld elements of %d bytes, stride %lld, refused: error %d",
                static_cast<long long>(rows), static_cast<long long>(columns), element_bytes,
                static_cast<long long>(stride), static_cast<int>(result));
  return LOWBIT_OK;
}

}  // namespace lowbit::cuda
