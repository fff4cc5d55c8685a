// A fiber: a stack and a place to go on. One CUDA thread is one.
#pragma once

#include <cstddef>

namespace emulator {

class fiber {
 public:
  fiber() = default;  // of the caller's own stack: somewhere to come back to
  ~fiber();
  fiber(const fiber&) = delete;
  fiber& operator=(const fiber&) = delete;

  // The next switch to this fiber calls entry(), which must never return. A fiber may be started again at any time.
  void start(void (*entry)());

  // Leaves `from`, which is running, and goes on where `to` was left.
  static void change(fiber& from, fiber& to);
  // First thing in entry().
  static void entered();

 private:
  void* stack_pointer_ = nullptr;
  void* memory_ = nullptr;  // guard page, then the stack
  void* context_ = nullptr;
  // What AddressSanitizer wants to know.
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace emulator
