// The emulator's side of csrc/cuda/common/device.h: the same names for the host compiler. Every function that a checker
// may blame takes the caller's place as a last, defaulted argument.
#pragma once

#include <bit>
#include <cstdint>

#include "emulator/machine.h"

#define LOWBIT_KERNEL(threads, min_ctas)
#define LOWBIT_DEVICE inline
#define LOWBIT_UNROLL
#define LOWBIT_UNROLL_N(n)
#define LOWBIT_GRID_CONSTANT
#ifndef LOWBIT_DEVICE_ARCH
#define LOWBIT_DEVICE_ARCH 900
#endif

namespace lowbit::cuda {

using emulator::place;

inline constexpr int warp_threads = 32;

inline int thread_index() { return emulator::self->owner->index * 32 + emulator::self->index; }
inline int lane_index() { return emulator::self->index; }
inline int warp_index() { return emulator::self->owner->index; }
inline uint32_t warp_uniform(uint32_t value) { return value; }
inline int cta_index() { return emulator::self->owner->owner->index[0]; }
inline int cta_index_y() { return emulator::self->owner->owner->index[1]; }
inline int cta_index_z() { return emulator::self->owner->owner->index[2]; }
inline int num_ctas() { return emulator::running->request().grid[0]; }
inline int num_ctas_y() { return emulator::running->request().grid[1]; }
inline int num_ctas_z() { return emulator::running->request().grid[2]; }
inline int num_threads() { return emulator::running->request().threads; }

inline void sync_threads(place where = place::current()) { emulator::running->barrier(0, 0, true, where); }
inline void barrier_sync(int id, int threads, place where = place::current()) {
  emulator::running->barrier(id, threads, true, where);
}
inline void barrier_arrive(int id, int threads, place where = place::current()) {
  emulator::running->barrier(id, threads, false, where);
}
inline void sync_warp(place where = place::current()) {
  int unused = 0;
  emulator::running->collective([](emulator::warp& w, void* const*) { w.next_epoch(); }, &unused, "sync_warp", where);
}

namespace detail {

struct exchange {
  uint32_t value;
  int operand;
};
enum class lane_rule { from, exclusive_or, down };

// PTX ISA 9.7.9.6, shfl.sync .idx, .bfly, .down with a full mask and c = 0x1f.
template <lane_rule rule>
void exchange_lanes(emulator::warp&, exchange* const* lanes) {
  uint32_t values[32];
  for (int i = 0; i < 32; ++i) values[i] = lanes[i]->value;
  for (int i = 0; i < 32; ++i) {
    const int operand = lanes[i]->operand;
    int source = i;
    if constexpr (rule == lane_rule::from) source = operand & 31;
    if constexpr (rule == lane_rule::exclusive_or) source = (i ^ operand) & 31;
    if constexpr (rule == lane_rule::down) source = i + operand < 32 ? i + operand : i;
    lanes[i]->value = values[source];
  }
}

struct vote {
  bool value;
  uint32_t ballot;
};
inline void count_votes(emulator::warp&, vote* const* lanes) {
  uint32_t ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= static_cast<uint32_t>(lanes[i]->value) << i;
  for (int i = 0; i < 32; ++i) lanes[i]->ballot = ballot;
}

template <lane_rule rule, class T>
T exchanged(T value, int operand, const char* name, place where) {
  static_assert(sizeof(T) == 4);
  exchange mine{std::bit_cast<uint32_t>(value), operand};
  emulator::together<exchange_lanes<rule>>(name, mine, where);
  return std::bit_cast<T>(mine.value);
}

}  // namespace detail

template <class T>
T shuffle(T value, int source, place where = place::current()) {
  return detail::exchanged<detail::lane_rule::from>(value, source, "shuffle", where);
}
template <class T>
T shuffle_xor(T value, int mask, place where = place::current()) {
  return detail::exchanged<detail::lane_rule::exclusive_or>(value, mask, "shuffle_xor", where);
}
template <class T>
T shuffle_down(T value, int distance, place where = place::current()) {
  return detail::exchanged<detail::lane_rule::down>(value, distance, "shuffle_down", where);
}
inline uint32_t ballot(bool predicate, place where = place::current()) {
  detail::vote mine{predicate, 0};
  emulator::together<detail::count_votes>("ballot", mine, where);
  return mine.ballot;
}
inline bool any(bool predicate, place where = place::current()) { return ballot(predicate, where) != 0; }
inline bool all(bool predicate, place where = place::current()) { return ballot(predicate, where) == ~0u; }
// PTX leaves the lane open (9.7.13.14): the emulator takes the last, so that nobody counts on lane 0.
inline bool elect_one(place where = place::current()) {
  ballot(true, where);
  return lane_index() == (emulator::running->wanted().arch >= 90 ? 31 : 0);
}

inline int cluster_rank() { return emulator::self->owner->owner->rank; }
inline int cluster_size() { return emulator::running->request().cluster; }

enum class registers { increase, decrease };

template <int N, registers change>
void set_max_registers(place where = place::current()) {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0);
  int unused = 0;
  emulator::running->collective([](emulator::warp&, void* const*) {}, &unused, "set_max_registers", where);
}

// Grids run one after the other: there is never one ahead.
inline void grid_dependency_wait() {}
inline void grid_dependency_launch() {}

}  // namespace lowbit::cuda
