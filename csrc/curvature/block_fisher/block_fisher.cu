// Launchers of the block-diagonal Fisher.
#include "curvature/block_fisher/block_factor.cuh"
#include "curvature/block_fisher/block_inverse_diagonal.cuh"
#include "curvature/block_fisher/block_products.cuh"

namespace mfac::cuda {
namespace {

dim3 grid_of(int64_t tasks) { return dim3(unsigned(std::min(tasks, kMostBlocks))); }

}  // namespace

template <typename T>
int block_factor(const T* window, int64_t stride, const Blocks& blocks, double damping, double num_terms,
                 double* factors, int64_t* failed, void* stream) {
  if (blocks.count() == 0) return 0;
  return MFAC_LAUNCH(block_factor_kernel<T>, grid_of(blocks.count()), dim3(kTileThreads), stream, window, stride,
                     blocks, damping, num_terms, factors, failed);
}

template <typename T>
int block_ihvp(const T* window, int64_t stride, const Blocks& blocks, const double* factors, const double* vectors,
               int64_t k, double damping, double* out, double* scratch, void* stream) {
  if (blocks.count() == 0 || k == 0) return 0;
  return MFAC_LAUNCH(block_ihvp_kernel<T>, grid_of(blocks.count() * k), dim3(kProductThreads), stream, window, stride,
                     blocks, factors, vectors, k, damping, out, scratch);
}

template <typename T>
int block_matvec(const T* window, int64_t stride, const Blocks& blocks, const double* vectors, int64_t k,
                 double damping, double num_terms, double* out, void* stream) {
  if (blocks.count() == 0 || k == 0) return 0;
  return MFAC_LAUNCH(block_matvec_kernel<T>, grid_of(blocks.count() * k), dim3(kProductThreads), stream, window, stride,
                     blocks, vectors, k, damping, num_terms, out);
}

template <typename T>
int block_inverse_diagonal(const T* window, int64_t stride, const Blocks& blocks, const double* factors, double damping,
                           double num_terms, double* out, double* scratch, void* stream) {
  if (blocks.count() == 0) return 0;
  return MFAC_LAUNCH(block_inverse_diagonal_kernel<T>, grid_of(diagonal_slots(blocks)), dim3(kTileThreads), stream,
                     window, stride, blocks, factors, damping, num_terms, out, scratch);
}

#define MFAC_INSTANCE(T)                                                                                               \
  template int block_factor<T>(const T*, int64_t, const Blocks&, double, double, double*, int64_t*, void*);            \
  template int block_ihvp<T>(const T*, int64_t, const Blocks&, const double*, const double*, int64_t, double, double*, \
                             double*, void*);                                                                          \
  template int block_matvec<T>(const T*, int64_t, const Blocks&, const double*, int64_t, double, double, double*,      \
                               void*);                                                                                 \
  template int block_inverse_diagonal<T>(const T*, int64_t, const Blocks&, const double*, double, double, double*,     \
                                         double*, void*);
MFAC_INSTANCE(float)
MFAC_INSTANCE(double)
#undef MFAC_INSTANCE

}  // namespace mfac::cuda
