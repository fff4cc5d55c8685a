#include "emulator/operations.h"

#include <cstring>

#include "emulator/counts.h"
#include "emulator/global_memory.h"

namespace emulator {

namespace {

void note(access_kind kind, uint64_t address, int bytes, place where) {
  if (self->owner->owner->counted) self->log.push_back({address, bytes, where, kind});
}
uint64_t number(const void* address) { return reinterpret_cast<uintptr_t>(address); }

}  // namespace

// ---- loads and stores ------------------------------------------------------------------------------------------

void load_global(void* value, const void* address, int bytes, const char* what, place where) {
  check_global(address, bytes, bytes, use::read, what, where);
  note(global_read, number(address), bytes, where);
  std::memcpy(value, address, static_cast<size_t>(bytes));
}

void store_global(void* address, const void* value, int bytes, const char* what, place where) {
  check_global(address, bytes, bytes, use::write, what, where);
  note(global_write, number(address), bytes, where);
  std::memcpy(address, value, static_cast<size_t>(bytes));
}

void load_shared(void* value, uint32_t address, int bytes, place where) {
  shared_memory& shared = self->owner->owner->shared;
  shared.check_range(address, bytes, bytes, "shared_load", where);
  shared.read(*self, address, bytes, "shared_load", where);
  note(shared_read, address, bytes, where);
  std::memcpy(value, shared.bytes(address), static_cast<size_t>(bytes));
}

void store_shared(uint32_t address, const void* value, int bytes, place where) {
  shared_memory& shared = self->owner->owner->shared;
  shared.check_range(address, bytes, bytes, "shared_store", where);
  shared.write(*self, address, bytes, "shared_store", where);
  note(shared_write, address, bytes, where);
  std::memcpy(shared.bytes(address), value, static_cast<size_t>(bytes));
}

uint32_t load_acquire(const uint32_t* address, place where) {
  running->spin("global_load_acquire", where);
  uint32_t value;
  check_global(address, 4, 4, use::atomic, "global_load_acquire", where);
  running->acquire_from(address);
  std::memcpy(&value, address, 4);
  return value;
}

void store_release(uint32_t* address, uint32_t value, place where) {
  check_global(address, 4, 4, use::write, "global_store_release", where);
  running->release_to(address);
  std::memcpy(address, &value, 4);
}

uint32_t atomic_add(uint32_t* address, uint32_t value, place where) {
  check_global(address, 4, 4, use::atomic, "atomic_add_release", where);
  running->acquire_from(address);
  running->release_to(address);
  running->made_progress();
  uint32_t before;
  std::memcpy(&before, address, 4);
  const uint32_t after = before + value;
  std::memcpy(address, &after, 4);
  return before;
}

// ---- cp.async --------------------------------------------------------------------------------------------------

void copy_async(uint32_t shared_address, const void* global, int bytes, int valid_bytes, place where) {
  if (valid_bytes < 0 || valid_bytes > bytes)
    error(where, "async_copy of %d bytes with %d valid ones", bytes, valid_bytes);
  check_global(global, valid_bytes, bytes, use::read, "async_copy", where);
  shared_memory& shared = self->owner->owner->shared;
  shared.check_range(shared_address, bytes, bytes, "async_copy", where);
  shared.begin_write(*self, shared_address, bytes, false, "async_copy", where);
  note(global_read, number(global), valid_bytes, where);
  note(shared_write, shared_address, bytes, where);
  self->copies.push_back({shared_address, bytes, valid_bytes, static_cast<const uint8_t*>(global), where});
}

void commit_copies() {
  self->groups.push_back(std::move(self->copies));
  self->copies.clear();
}

void wait_copies(int pending_groups) {
  lane& me = *self;
  shared_memory& shared = me.owner->owner->shared;
  while (static_cast<int>(me.groups.size()) > pending_groups) {
    for (const copy_in_flight& copy : me.groups.front()) {
      check_global(copy.global, copy.valid, 1, use::read, "async_copy", copy.where);
      shared.cancel_write(copy.shared, copy.bytes);
      shared.write(me, copy.shared, copy.bytes, "async_copy", copy.where);
      uint8_t* const to = shared.bytes(copy.shared);
      if (copy.valid) std::memcpy(to, copy.global, static_cast<size_t>(copy.valid));
      std::memset(to + copy.valid, 0, static_cast<size_t>(copy.bytes - copy.valid));
    }
    me.groups.pop_front();
  }
}

// ---- matrices in shared memory ---------------------------------------------------------------------------------

namespace {

struct matrix_request {
  uint32_t* registers;
  uint32_t address;
  int count;
  bool transposed;
  place where;
};

void load_matrices(warp& w, matrix_request* const* lanes) {
  shared_memory& shared = w.owner->shared;
  lane* const caller = self;
  for (int matrix = 0; matrix < lanes[0]->count; ++matrix) {
    uint16_t values[8][8];
    for (int row = 0; row < 8; ++row) {
      const matrix_request& from = *lanes[matrix * 8 + row];
      lane& reader = w.lanes[matrix * 8 + row];
      self = &reader;
      shared.check_range(from.address, 16, 16, "ldmatrix", from.where);
      shared.read(reader, from.address, 16, "ldmatrix", from.where);
      self = caller;
      std::memcpy(values[row], shared.bytes(from.address), 16);
    }
    for (int l = 0; l < 32; ++l) {
      const int row = l / 4, column = l % 4 * 2;
      const uint16_t first = lanes[0]->transposed ? values[column][row] : values[row][column];
      const uint16_t second = lanes[0]->transposed ? values[column + 1][row] : values[row][column + 1];
      lanes[l]->registers[matrix] = first | static_cast<uint32_t>(second) << 16;
    }
  }
}

void store_matrices(warp& w, matrix_request* const* lanes) {
  shared_memory& shared = w.owner->shared;
  lane* const caller = self;
  for (int matrix = 0; matrix < lanes[0]->count; ++matrix) {
    uint16_t values[8][8];
    for (int l = 0; l < 32; ++l) {
      const int row = l / 4, column = l % 4 * 2;
      const uint32_t pair = lanes[l]->registers[matrix];
      (lanes[0]->transposed ? values[column][row] : values[row][column]) = static_cast<uint16_t>(pair);
      (lanes[0]->transposed ? values[column + 1][row] : values[row][column + 1]) = static_cast<uint16_t>(pair >> 16);
    }
    for (int row = 0; row < 8; ++row) {
      const matrix_request& to = *lanes[matrix * 8 + row];
      lane& writer = w.lanes[matrix * 8 + row];
      self = &writer;
      shared.check_range(to.address, 16, 16, "stmatrix", to.where);
      shared.write(writer, to.address, 16, "stmatrix", to.where);
      self = caller;
      std::memcpy(shared.bytes(to.address), values[row], 16);
    }
  }
}

}  // namespace

void load_matrix(uint32_t* registers, int count, uint32_t address, bool transposed, place where) {
  matrix_request mine{registers, address, count, transposed, where};
  if (self->index < count * 8) note(matrix_read, address, 16, where);
  together<load_matrices>("ldmatrix", mine, where);
}

void store_matrix(const uint32_t* registers, int count, uint32_t address, bool transposed, place where) {
  matrix_request mine{const_cast<uint32_t*>(registers), address, count, transposed, where};
  if (self->index < count * 8) note(matrix_write, address, 16, where);
  together<store_matrices>("stmatrix", mine, where);
}

}  // namespace emulator
