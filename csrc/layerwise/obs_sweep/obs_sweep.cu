// Launcher of obs_sweep_: one launch.
#include "layerwise/obs_sweep/obs_sweep.cuh"

namespace mfac::cuda {

int obs_sweep(const SweepArguments& sweep, void* stream) {
  if (sweep.rows == 0 || sweep.width == 0) return 0;
  return MFAC_LAUNCH(obs_sweep_kernel, dim3(unsigned((sweep.rows + kSweepRows - 1) / kSweepRows)), dim3(kSweepThreads),
                     stream, sweep);
}

}  // namespace mfac::cuda
