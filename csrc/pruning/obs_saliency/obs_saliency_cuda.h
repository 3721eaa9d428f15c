// Launcher of the CUDA twin of obs_saliency: pointers to device memory, a stream, the launch's
// error.
#pragma once

#include "common/formats.h"

namespace mfac::cuda {

// out [d] <- w²/(2 diagonal)
template <typename T, typename D>
int obs_saliency(const T* weights, const D* diagonal, int64_t d, double* out, void* stream);

}  // namespace mfac::cuda
