// The CPU kernels of every op, as one table of function pointers per instruction set.
//
// A room declares its kernels in `<op>_kernels.h` and stands in the list of cpu/rooms.inl. A kernel
// is serial and works on a range: threads, allocation and checks belong to the torch adapters
// (`<op>_op.cpp`). Kernels include no torch header, never throw and never allocate; a failure is
// reported as the failing index. All matrices are row-major; `stride` is the distance between rows
// in elements.
#pragma once

#define MFAC_STRING(...) #__VA_ARGS__
#define MFAC_STRING_OF(...) MFAC_STRING(__VA_ARGS__)  // of what a macro stands for

#define MFAC_ROOM_FILE(path) MFAC_STRING(path##_kernels.h)
#include "cpu/rooms.inl"

namespace mfac {

#define MFAC_ROOM(room) room,
struct KernelTable :
#include "cpu/rooms.inl"
    Instances<> {
  const char* isa;
};

// The table for this machine: the best instruction set that was built and that the CPU has, or the
// one that the environment variable MFAC_CPU_ISA names (portable, avx2, avx512).
const KernelTable& kernel_table();

// The part of it that a room declared, as kernels<WindowDotKernels<float, double>>().dot(...).
template <typename Kernels>
const Kernels& kernels() {
  return kernel_table();
}

// Names of the instruction sets built, separated by commas, best last.
const char* isas_built();

extern const KernelTable kernels_portable;
#if defined(__x86_64__)
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
#endif

}  // namespace mfac
