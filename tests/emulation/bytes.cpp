// What a launch reads and writes of global memory, each byte once; what it has written itself it
// need not read. Kernels are compiled for ThreadSanitizer, which has every access of theirs call a
// function; these here take the place of its runtime and keep the addresses.
#include <array>
#include <bit>
#include <unordered_map>

#include "cuda_on_cpu.h"

namespace {

enum Access { kRead, kWritten };
using Line = std::array<uint64_t, 2>;  // a bit for each of 64 bytes: read, written

std::unordered_map<uintptr_t, Line> lines;             // of the launch that runs
std::map<std::string, std::array<uint64_t, 2>> bytes;  // of all launches of a kernel

// A fiber is how many Unseen objects live on it. The host's code is unseen.
int host = 1;
int* fiber = &host;

void access(const void* p, std::size_t count, Access how) {
  if (*fiber > 0 || simt::Block::instance().owns(p)) return;
  for (auto at = reinterpret_cast<uintptr_t>(p); count > 0; ++at, --count) {
    Line& line = lines[at / 64];
    const uint64_t byte = uint64_t{1} << at % 64;
    if (how == kWritten || !(line[kWritten] & byte)) line[how] |= byte;
  }
}

}  // namespace

void simt::count_bytes(const std::string& kernel) {
  for (const auto& [_, line] : lines)
    for (const Access how : {kRead, kWritten}) bytes[kernel][how] += std::popcount(line[how]);
  lines.clear();
}

// A line for every kernel launched since the last call: its name, bytes read, bytes written,
// separated by tabs.
extern "C" __attribute__((visibility("default"))) const char* mfac_simt_bytes() {
  static std::string report;
  report.clear();
  for (const auto& [name, count] : bytes)
    report += name + "\t" + std::to_string(count[kRead]) + "\t" + std::to_string(count[kWritten]) + "\n";
  bytes.clear();
  return report.c_str();
}

extern "C" {
#define MFAC_ACCESS(size)                                               \
  void __tsan_read##size(void* p) { access(p, size, kRead); }           \
  void __tsan_write##size(void* p) { access(p, size, kWritten); }       \
  void __tsan_unaligned_read##size(void* p) { access(p, size, kRead); } \
  void __tsan_unaligned_write##size(void* p) { access(p, size, kWritten); }
MFAC_ACCESS(1)
MFAC_ACCESS(2)
MFAC_ACCESS(4)
MFAC_ACCESS(8)
MFAC_ACCESS(16)
#undef MFAC_ACCESS
void __tsan_read_range(void* p, std::size_t size) { access(p, size, kRead); }
void __tsan_write_range(void* p, std::size_t size) { access(p, size, kWritten); }
int __tsan_atomic32_fetch_add(volatile int* p, int x, int) { return __atomic_fetch_add(p, x, __ATOMIC_RELAXED); }
char __tsan_atomic8_load(const volatile char* p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }

void AnnotateIgnoreReadsBegin(const char*, int) { ++*fiber; }
void AnnotateIgnoreReadsEnd(const char*, int) { --*fiber; }
void AnnotateIgnoreWritesBegin(const char*, int) {}
void AnnotateIgnoreWritesEnd(const char*, int) {}
void* __tsan_create_fiber(unsigned) { return new int(0); }
void* __tsan_get_current_fiber() { return fiber; }
void __tsan_switch_to_fiber(void* to, unsigned) { fiber = static_cast<int*>(to); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_acquire(void*) {}
void __tsan_release(void*) {}
}
