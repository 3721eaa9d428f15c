// Kernels with a fault each, which the emulation or a sanitizer has to find (test_emulation.py),
// and one without.
#include "cuda/reduce.cuh"

namespace mfac::cuda {
namespace {

enum Fault {
  kNone,
  kRaceOfThreads,
  kRaceOfBlocks,
  kMissingBarrier,
  kOutsideTensor,
  kOutsideShared,
  kDivergentBarrier,
  kMissingWarpBarrier
};

// out[block] <- the sum of x, by way of shared memory.
template <Fault fault>
__global__ void faulty_kernel(const double* x, int64_t n, double* out) {
  constexpr int kThreads = 64;
  MFAC_SHARED(double, part, [kThreads]);
  const int thread = threadIdx.x;
  double sum = 0;
  for (int64_t i = thread; fault == kOutsideTensor ? i <= n : i < n; i += kThreads) sum += x[i];
  part[fault == kOutsideShared ? thread + 1 : thread] = sum;
  if constexpr (fault == kRaceOfThreads) part[thread / 2] = sum;
  if constexpr (fault == kDivergentBarrier) {
    if (thread < 40) __syncthreads();
  } else if constexpr (fault == kMissingWarpBarrier) {
    if (thread < 32) part[thread] += part[thread ^ 1];
    __syncthreads();
  } else if constexpr (fault != kMissingBarrier) {
    __syncthreads();
  }
  if (thread == 0) {
    double total = 0;
    for (int i = 0; i < kThreads; ++i) total += part[i];
    out[fault == kRaceOfBlocks ? 0 : blockIdx.x] = total;
  }
}

template <Fault fault>
int launch_faulty(const double* x, int64_t n, double* out) {
  return MFAC_LAUNCH((faulty_kernel<fault>), dim3(2), dim3(64), nullptr, x, n, out);
}

}  // namespace
}  // namespace mfac::cuda

// 0, or 1 where the emulation has thrown: its message goes to `message`, of 1000 characters.
extern "C" __attribute__((visibility("default"))) int run_faulty(int fault, const double* x, int64_t n, double* out,
                                                                 char* message) {
  using namespace mfac::cuda;
  static constexpr decltype(&launch_faulty<kNone>) kLaunchers[] = {launch_faulty<kNone>,
                                                                   launch_faulty<kRaceOfThreads>,
                                                                   launch_faulty<kRaceOfBlocks>,
                                                                   launch_faulty<kMissingBarrier>,
                                                                   launch_faulty<kOutsideTensor>,
                                                                   launch_faulty<kOutsideShared>,
                                                                   launch_faulty<kDivergentBarrier>,
                                                                   launch_faulty<kMissingWarpBarrier>};
  try {
    return kLaunchers[fault](x, n, out);
  } catch (const std::exception& e) {
    std::strncpy(message, e.what(), 999);
    return 1;
  }
}
