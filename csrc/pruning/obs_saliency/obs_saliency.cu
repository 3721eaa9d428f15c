// Launcher of obs_saliency: one launch.
#include "pruning/obs_saliency/obs_saliency.cuh"

namespace mfac::cuda {
namespace {

template <int width, typename T, typename D>
int launch_saliency(const T* weights, const D* diagonal, int64_t d, double* out, void* stream) {
  constexpr int64_t kEntries = kSaliencyThreads * width;
  return MFAC_LAUNCH((obs_saliency_kernel<T, D, width>), dim3(unsigned((d + kEntries - 1) / kEntries)),
                     dim3(kSaliencyThreads), stream, weights, diagonal, d, out);
}

}  // namespace

template <typename T, typename D>
int obs_saliency(const T* weights, const D* diagonal, int64_t d, double* out, void* stream) {
  if (d == 0) return 0;
  const bool packed = is_aligned(weights, 0) && is_aligned(diagonal, 0) && is_aligned(out, 0);
  return packed ? launch_saliency<kSaliencyWidth>(weights, diagonal, d, out, stream)
                : launch_saliency<1>(weights, diagonal, d, out, stream);
}

template int obs_saliency<float, float>(const float*, const float*, int64_t, double*, void*);
template int obs_saliency<float, double>(const float*, const double*, int64_t, double*, void*);
template int obs_saliency<double, float>(const double*, const float*, int64_t, double*, void*);
template int obs_saliency<double, double>(const double*, const double*, int64_t, double*, void*);

}  // namespace mfac::cuda
