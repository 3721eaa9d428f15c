// Launcher of obs_eliminate: one launch.
#include "layerwise/obs_eliminate/obs_eliminate.cuh"

namespace mfac::cuda {

int obs_eliminate(const EliminationArguments& elimination, int64_t slots, double* numbers, int64_t* integers,
                  void* stream) {
  if (elimination.rows == 0 || elimination.n == 0) return 0;
  return MFAC_LAUNCH(obs_eliminate_kernel, dim3(unsigned(slots)), dim3(kEliminateThreads), stream, elimination, numbers,
                     integers);
}

}  // namespace mfac::cuda
