// Instructions as the vocabulary calls them; sections of the PTX ISA 9.0 manual in brackets.
#pragma once

#include "emulator/machine.h"

namespace emulator {

// [9.7.9.8 ld, 9.7.9.11 st] 1, 2, 4, 8 or 16 bytes, aligned to their size.
void load_global(void* value, const void* address, int bytes, const char* what, place where);
void store_global(void* address, const void* value, int bytes, const char* what, place where);
void load_shared(void* value, uint32_t address, int bytes, place where);
void store_shared(uint32_t address, const void* value, int bytes, place where);

// [9.7.9.8 ld.acquire, 9.7.9.11 st.release, 9.7.13.5 atom] A loop around load_acquire makes progress: others run first.
uint32_t load_acquire(const uint32_t* address, place where);
void store_release(uint32_t* address, uint32_t value, place where);
uint32_t atomic_add(uint32_t* address, uint32_t value, place where);

// [9.7.9.25.3 cp.async, commit_group, wait_group] Bytes land in the wait. Touching them before is an error, so landing
// earlier would show nothing.
void copy_async(uint32_t shared, const void* global, int bytes, int valid_bytes, place where);
void commit_copies();
void wait_copies(int pending_groups);

// [9.7.14.5.15 ldmatrix, 9.7.14.5.16 stmatrix]
void load_matrix(uint32_t* registers, int count, uint32_t address, bool transposed, place where);
void store_matrix(const uint32_t* registers, int count, uint32_t address, bool transposed, place where);

// [9.7.14.5.14 mma] m16n8k16 for 16-bit elements, m16n8k32 for 8-bit ones.
enum class element { bf16, f16, e4m3, s8 };
void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], element type, place where);
void multiply(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], element type, place where);

}  // namespace emulator
