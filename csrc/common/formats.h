// What CPU and CUDA kernels have to agree on: the formats of a window and how sums are grouped.
#pragma once

#include <cstdint>

// Of functions that kernels call too.
#if defined(__CUDACC__)
#define MFAC_HOST_DEVICE __host__ __device__
#else
#define MFAC_HOST_DEVICE
#endif

namespace mfac {

constexpr int64_t kScaleColumns = 1024;  // columns of an int8 row that share a scale
constexpr int64_t kSingleDepth = 64;     // products summed before their sum is added to others (whitened_norms/)
constexpr int kPacketBytes = 16;         // of an aligned load of CUDA kernels (cuda/packet.cuh)
constexpr int kMostInGroup = 64;         // scores of a group (nm_mask/)
constexpr double kWithinGrid =
    0.5 * (1 + 1e-9);                // of a step: a weight further from its value is outside (obs_eliminate/)
constexpr double kCancelled = 1e-6;  // of 1 - ‖U_:j‖² (block_fisher/): below this a bound is looked at

// The 16-bit formats of a window, as bits: kernels widen them on load.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Every float format of a window with every type of vector that meets it; and int8 too.
#define MFAC_FOR_FLOAT_WINDOWS_AND_VECTORS(instance)                                              \
  instance(float, float) instance(float, double) instance(double, float) instance(double, double) \
      instance(bf16, float) instance(bf16, double) instance(f16, float) instance(f16, double)
#define MFAC_FOR_WINDOWS_AND_VECTORS(instance) \
  MFAC_FOR_FLOAT_WINDOWS_AND_VECTORS(instance) instance(int8_t, float) instance(int8_t, double)

}  // namespace mfac
