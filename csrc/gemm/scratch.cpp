#include <cstdlib>

#include "gemm/contract.h"

namespace lowbit {
namespace {

constexpr size_t keep_bytes = size_t{64} << 20;  // more than this goes back after the next smaller request

struct buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~buffer() { std::free(data); }
};

thread_local buffer buffers[3];

}  // namespace

void* scratch(scratch_slot slot, size_t bytes) {
  buffer& b = buffers[static_cast<int>(slot)];
  const bool too_small = b.bytes<bytes, wasteful = b.bytes> keep_bytes && bytes <= keep_bytes;
  if (too_small || wasteful) {
    std::free(b.data);
    b.bytes = static_cast<size_t>(round_up(static_cast<int64_t>(bytes + bytes / 4), 4096));
    b.data = std::aligned_alloc(4096, b.bytes);
    if (!b.data) b.bytes = 0;
  }
  return b.data;
}

}  // namespace lowbit
