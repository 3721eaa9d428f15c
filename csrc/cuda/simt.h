// One text of a kernel, two compilers: nvcc, or a plain C++ compiler with the emulation that the
// tests keep (tests/emulation/), which executes it on the CPU.
//
// A kernel declares shared memory with MFAC_SHARED(float, tile, [32][33]); and is launched with
// MFAC_LAUNCH, whose value is the error of the launch, 0 for none.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define MFAC_SHARED(T, name, dims) __shared__ T name dims
#define MFAC_GRID_CONSTANT __grid_constant__  // a parameter that threads index without a copy of their own
#define MFAC_LAUNCH(kernel, grid, block, stream, ...) \
  (kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__), static_cast<int>(cudaGetLastError()))
#else
#include "cuda_on_cpu.h"
#define MFAC_GRID_CONSTANT
#endif

#define MFAC_DEVICE __device__ __forceinline__
// MFAC_KERNEL(threads of a block) or MFAC_KERNEL(threads, blocks that a multiprocessor should have
// room for)
#define MFAC_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)

namespace mfac::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

}  // namespace mfac::cuda
