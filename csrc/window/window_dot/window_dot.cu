// Launchers of window_dot and squared_norms: a launch over the window and one that adds its parts.
#include "window/window_dot/window_dot.cuh"

namespace mfac::cuda {
namespace {

dim3 dot_grid(const DotShape& shape) {
  return dim3(unsigned(shape.row_groups() * shape.chunks() * shape.vector_groups()));
}

template <typename T, typename V, int rows, int vectors>
int launch_dot(const T* window, const float* scales, int64_t stride, const DotShape& shape, const V* v,
               int64_t vector_stride, double* partial, void* stream) {
  if (is_aligned(window, stride))
    return MFAC_LAUNCH((window_dot_kernel<T, V, kPacket<T>, rows, vectors>), dot_grid(shape), dim3(kDotThreads), stream,
                       window, scales, stride, shape.m, shape.d, v, vector_stride, shape.k, shape.chunk(), partial);
  return MFAC_LAUNCH((window_dot_kernel<T, V, 1, rows, vectors>), dot_grid(shape), dim3(kDotThreads), stream, window,
                     scales, stride, shape.m, shape.d, v, vector_stride, shape.k, shape.chunk(), partial);
}

}  // namespace

template <typename T, typename V>
int window_dot(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d, const V* vectors,
               int64_t vector_stride, int64_t k, double* out, double* scratch, void* stream) {
  if (m == 0 || k == 0) return 0;
  const DotShape shape{m, d, k};
  const int error = k == 1
                        ? launch_dot<T, V, 8, 1>(window, scales, stride, shape, vectors, vector_stride, scratch, stream)
                        : launch_dot<T, V, 4, kMostDotVectors>(window, scales, stride, shape, vectors, vector_stride,
                                                               scratch, stream);
  if (error != 0) return error;
  return sum_parts(scratch, shape.chunks(), m * k, nullptr, out, stream);
}

template <typename T>
int squared_norms(const T* window, int64_t stride, int64_t m, int64_t d, double* out, double* scratch, void* stream) {
  if (m == 0) return 0;
  const DotShape shape{m, d, 1};
  constexpr int kRows = 8;
  const int error = is_aligned(window, stride)
                        ? MFAC_LAUNCH((squared_norms_kernel<T, kPacket<T>, kRows>), dot_grid(shape), dim3(kDotThreads),
                                      stream, window, stride, m, d, shape.chunk(), scratch)
                        : MFAC_LAUNCH((squared_norms_kernel<T, 1, kRows>), dot_grid(shape), dim3(kDotThreads), stream,
                                      window, stride, m, d, shape.chunk(), scratch);
  if (error != 0) return error;
  return sum_parts(scratch, shape.chunks(), m, nullptr, out, stream);
}

#define MFAC_INSTANCE(T, V)                                                                                    \
  template int window_dot<T, V>(const T*, const float*, int64_t, int64_t, int64_t, const V*, int64_t, int64_t, \
                                double*, double*, void*);
MFAC_FOR_WINDOWS_AND_VECTORS(MFAC_INSTANCE)
#undef MFAC_INSTANCE
template int squared_norms<float>(const float*, int64_t, int64_t, int64_t, double*, double*, void*);
template int squared_norms<double>(const double*, int64_t, int64_t, int64_t, double*, double*, void*);

}  // namespace mfac::cuda
