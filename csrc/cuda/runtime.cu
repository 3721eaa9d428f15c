// What the adapters need of the CUDA runtime besides launches.
#include "cuda/simt.h"

namespace mfac::cuda {

const char* error_text(int error) {
#if defined(__CUDACC__)
  return cudaGetErrorString(static_cast<cudaError_t>(error));
#else
  return error == 0 ? "no error" : "an error of the emulation";
#endif
}

}  // namespace mfac::cuda
