#include "emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#define LOWBIT_FIBER_UCONTEXT 1
#endif

#if defined(__SANITIZE_ADDRESS__)
#define LOWBIT_FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LOWBIT_FIBER_ASAN 1
#endif
#endif
#ifdef LOWBIT_FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
constexpr std::size_t stack_bytes = 512 * 1024;
#else
constexpr std::size_t stack_bytes = 128 * 1024;
#endif

// emulator_switch(&from's stack pointer, to's stack pointer): the registers that a call preserves are pushed on one
// stack and popped from the other.
#if defined(__x86_64__)
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
  .text
  .p2align 4
  .globl emulator_switch
  .type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulator_switch, .-emulator_switch
)");
#elif defined(__aarch64__)
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
  .text
  .p2align 4
  .globl emulator_switch
  .type emulator_switch, %function
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size emulator_switch, .-emulator_switch
)");
#endif

namespace emulator {

namespace {

thread_local fiber* left = nullptr;  // the fiber that was running before this one

[[noreturn]] void out_of_memory() {
  std::perror("emulator: no memory for a thread's stack");
  std::abort();
}

}  // namespace

fiber::~fiber() {
  if (memory_) munmap(memory_, stack_bytes + static_cast<std::size_t>(getpagesize()));
#ifdef LOWBIT_FIBER_UCONTEXT
  delete static_cast<ucontext_t*>(context_);
#endif
}

void fiber::start(void (*entry)()) {
  const auto page = static_cast<std::size_t>(getpagesize());
  if (!memory_) {
    memory_ =
        mmap(nullptr, stack_bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) out_of_memory();
    if (mprotect(memory_, page, PROT_NONE)) out_of_memory();
    bottom_ = static_cast<char*>(memory_) + page;
    size_ = stack_bytes;
  }
  fake_stack_ = nullptr;
#ifdef LOWBIT_FIBER_ASAN
  ASAN_UNPOISON_MEMORY_REGION(bottom_, size_);
#endif
  char* const top = static_cast<char*>(memory_) + page + stack_bytes;
#if defined(__x86_64__)
  auto* sp = reinterpret_cast<void**>(top);
  *--sp = nullptr;  // the entry sees the stack as after a call: 8 bytes past a multiple of 16
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  stack_pointer_ = sp;
#elif defined(__aarch64__)
  auto* sp = reinterpret_cast<void**>(top - 160);
  for (int i = 0; i < 20; ++i) sp[i] = nullptr;
  sp[11] = reinterpret_cast<void*>(entry);  // x30
  stack_pointer_ = sp;
#else
  if (!context_) context_ = new ucontext_t;
  auto* context = static_cast<ucontext_t*>(context_);
  getcontext(context);
  context->uc_stack.ss_sp = static_cast<char*>(memory_) + page;
  context->uc_stack.ss_size = stack_bytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  (void)top;
#endif
}

void fiber::change(fiber& from, fiber& to) {
  left = &from;
#ifdef LOWBIT_FIBER_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
#endif
#ifdef LOWBIT_FIBER_UCONTEXT
  if (!from.context_) from.context_ = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(from.context_), static_cast<ucontext_t*>(to.context_));
#else
  emulator_switch(&from.stack_pointer_, to.stack_pointer_);
#endif
#ifdef LOWBIT_FIBER_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack_, &left->bottom_, &left->size_);
#endif
}

void fiber::entered() {
#ifdef LOWBIT_FIBER_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &left->bottom_, &left->size_);
#endif
}

}  // namespace emulator
