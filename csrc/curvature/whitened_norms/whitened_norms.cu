// Launchers of whitened_norms: two small launches pack L⁻¹ and weigh the bound, one is the product.
#include "curvature/whitened_norms/whitened_norms.cuh"

namespace mfac::cuda {

template <typename T, typename C>
int whitened_norms(const T* window, int64_t stride, int64_t m, int64_t d, const double* inverse_factor, double* norms,
                   double* errors, double* scratch, void* stream) {
  if (m == 0 || d == 0) return 0;
  C* packed = reinterpret_cast<C*>(scratch);  // first: it is read in packets
  double *weights = scratch + packed_factor_size(m), *scale = weights + m;
  C* relative = reinterpret_cast<C*>(scale + 2);
  const int64_t whole_bands = ceil_div(m, kBandRows) * kBandRows;
  int error = MFAC_LAUNCH(pack_factor_kernel<C>, dim3(unsigned(ceil_div(whole_bands, kWeightWarps))),
                          dim3(kWeightThreads), stream, inverse_factor, m, packed, weights);
  if (error == 0)
    error = MFAC_LAUNCH(relative_weights_kernel<C>, dim3(1), dim3(kWeightThreads), stream, weights, m, relative, scale);
  if (error == 0)
    error = MFAC_LAUNCH((whitened_norms_kernel<T, C>), dim3(unsigned(ceil_div(d, kWhitenColumns<C>))),
                        dim3(kWhitenThreads), stream, window, stride, m, d, packed, relative, scale, norms, errors);
  return error;
}

#define MFAC_INSTANCE(T, C)                                                                                        \
  template int whitened_norms<T, C>(const T*, int64_t, int64_t, int64_t, const double*, double*, double*, double*, \
                                    void*);
MFAC_INSTANCE(float, float)
MFAC_INSTANCE(float, double)
MFAC_INSTANCE(double, double)
#undef MFAC_INSTANCE

}  // namespace mfac::cuda
