// The emulator's side of csrc/cuda/common/tma.h.
#pragma once

#include "cuda/common/barrier.h"
#include "cuda/common/memory.h"
#include "gemm/status.h"

namespace lowbit::cuda {

using tensor_map = emulator::tensor;

template <cache hint = cache::normal>
void bulk_copy(uint32_t shared, const void* global, int bytes, uint32_t barrier, place where = place::current()) {
  emulator::bulk_copy(shared, global, bytes, barrier, where);
}
template <cache hint = cache::normal>
void tensor_copy(uint32_t shared, const tensor_map& map, int column, int row, uint32_t barrier,
                 place where = place::current()) {
  emulator::tensor_copy(shared, map, column, row, barrier, 0, where);
}
template <cache hint = cache::normal>
void tensor_copy_multicast(uint32_t shared, const tensor_map& map, int column, int row, uint32_t barrier, uint16_t ctas,
                           place where = place::current()) {
  emulator::tensor_copy(shared, map, column, row, barrier, ctas, where);
}
inline void prefetch_map(const tensor_map&) {}

constexpr uint32_t swizzle_128b(uint32_t offset) { return emulator::swizzled(offset, 128); }

inline lowbit_status make_tensor_map(tensor_map* map, int element_bytes, const void* data, int64_t columns,
                                     int64_t rows, int64_t stride, int box_rows) {
  *map = {static_cast<const uint8_t*>(data), columns, rows, stride, element_bytes, 128 / element_bytes, box_rows, 128};
  const std::string wrong = emulator::check_tensor(*map);
  if (!wrong.empty()) return fail(LOWBIT_INVALID_VALUE, "tensor map refused: %s", wrong.c_str());
  return LOWBIT_OK;
}

}  // namespace lowbit::cuda
