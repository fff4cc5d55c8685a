// The emulator's side of csrc/cuda/common/memory.h.
#pragma once

#include <cstring>

#include "cuda/common/device.h"
#include "emulator/global_memory.h"
#include "emulator/operations.h"

namespace lowbit::cuda {

struct u32x2 {
  uint32_t x, y;
};
struct u32x4 {
  uint32_t x, y, z, w;
};

inline float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t as_u32(float value) { return std::bit_cast<uint32_t>(value); }

enum class cache { normal, streaming, keep };

template <class T, cache C = cache::normal>
T global_load(const void* address, place where = place::current()) {
  T value;
  emulator::load_global(&value, address, sizeof(T), "global_load", where);
  return value;
}
template <class T>
void global_store(void* address, std::type_identity_t<T> value, place where = place::current()) {
  emulator::store_global(address, &value, sizeof(T), "global_store", where);
}

inline uint32_t global_load_acquire(const uint32_t* address, place where = place::current()) {
  return emulator::load_acquire(address, where);
}
inline void global_store_release(uint32_t* address, uint32_t value, place where = place::current()) {
  emulator::store_release(address, value, where);
}
inline uint32_t atomic_add_release(uint32_t* address, uint32_t value, place where = place::current()) {
  return emulator::atomic_add(address, value, where);
}
inline void memory_fence() {}

inline uint32_t shared_base() { return emulator::shared_window; }

template <class T>
T shared_load(uint32_t address, place where = place::current()) {
  T value;
  emulator::load_shared(&value, address, sizeof(T), where);
  return value;
}
template <class T>
void shared_store(uint32_t address, std::type_identity_t<T> value, place where = place::current()) {
  emulator::store_shared(address, &value, sizeof(T), where);
}

template <int bytes, cache C = cache::normal>
void async_copy(uint32_t shared, const void* global, int valid_bytes, place where = place::current()) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  emulator::copy_async(shared, global, bytes, valid_bytes, where);
}
template <int bytes, cache C = cache::normal>
void async_copy(uint32_t shared, const void* global, place where = place::current()) {
  async_copy<bytes, C>(shared, global, bytes, where);
}
inline void async_commit() { emulator::commit_copies(); }
template <int N>
void async_wait() {
  emulator::wait_copies(N);
}

template <int N>
void ldmatrix(uint32_t (&r)[N], uint32_t address, place where = place::current()) {
  static_assert(N == 1 || N == 2 || N == 4);
  emulator::load_matrix(r, N, address, false, where);
}
template <int N>
void ldmatrix_transposed(uint32_t (&r)[N], uint32_t address, place where = place::current()) {
  static_assert(N == 1 || N == 2 || N == 4);
  emulator::load_matrix(r, N, address, true, where);
}
#if LOWBIT_DEVICE_ARCH >= 900
template <int N>
void stmatrix(uint32_t address, const uint32_t (&r)[N], place where = place::current()) {
  static_assert(N == 1 || N == 2 || N == 4);
  emulator::store_matrix(r, N, address, false, where);
}
template <int N>
void stmatrix_transposed(uint32_t address, const uint32_t (&r)[N], place where = place::current()) {
  static_assert(N == 1 || N == 2 || N == 4);
  emulator::store_matrix(r, N, address, true, where);
}
#endif

}  // namespace lowbit::cuda
