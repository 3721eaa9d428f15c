// One fiber for every CUDA thread of a block: its own stack, switched to and from by hand, known to
// the sanitizers.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <stdexcept>
#include <string>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#define SIMT_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define SIMT_UNSEEN
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

// While one of these lives, what the emulation itself reads and writes is no part of the program
// under test.
struct Unseen {
#if defined(__SANITIZE_THREAD__)
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  }
#else
  Unseen() {}
#endif
};

// Memory that is mapped, not allocated: sanitizers neither guard nor reuse it.
inline char* map_memory(std::size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::runtime_error("simt: out of memory");
  return static_cast<char*>(p);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::size_t kStackBytes = 256 * 1024;
#else
constexpr std::size_t kStackBytes = 64 * 1024;
#endif

struct Stack {
  void* pointer = nullptr;  // where the fiber was left
  char* base = nullptr;
  std::size_t bytes = kStackBytes;
  void* thread = nullptr;  // ThreadSanitizer's
  void* shadow = nullptr;  // AddressSanitizer's
};

#if !defined(__x86_64__)
#error "The emulation switches stacks in x86-64 assembly."
#endif
// Leaves the registers that a call must keep on the stack in use, and goes on where the other one
// was left.
__attribute__((naked, noinline)) inline void switch_stack(void** /*from*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

// `no_sync`: a switch orders no memory; only barriers do.
SIMT_UNSEEN inline void switch_to(Stack& from, Stack& to) {
#if defined(__SANITIZE_THREAD__)
  constexpr unsigned no_sync = 1;
  __tsan_switch_to_fiber(to.thread, no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.shadow, to.base, to.bytes);
#endif
  switch_stack(&from.pointer, to.pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.shadow, nullptr, nullptr);
#endif
}

// A stack on which `run`, which never returns, begins at the first switch to it.
inline Stack make_stack(void (*run)()) {
  Stack stack;
  stack.base = map_memory(kStackBytes);
  void** top = reinterpret_cast<void**>(stack.base + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(run);
  for (int reg = 0; reg < 6; ++reg) *--top = nullptr;
  stack.pointer = top;
#if defined(__SANITIZE_THREAD__)
  stack.thread = __tsan_create_fiber(0);
#endif
  return stack;
}

// The stack that the caller runs on.
inline Stack this_stack() {
  Stack stack;
#if defined(__SANITIZE_THREAD__)
  stack.thread = __tsan_get_current_fiber();
#endif
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  void* base;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &base, &stack.bytes);
  pthread_attr_destroy(&attributes);
  stack.base = static_cast<char*>(base);
#endif
  return stack;
}

}  // namespace simt
