// Launcher of window_combine_: one launch.
#include "window_combine/window_combine.cuh"

namespace mfac::cuda {
namespace {

template <typename T, typename V, int width, int vectors>
int launch_combine(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d,
                   const double* coefficients, int64_t k, double alpha, double beta, V* out, int64_t out_stride,
                   void* stream) {
  constexpr int64_t kColumns = kWarp * width;
  const dim3 grid(unsigned((d + kColumns - 1) / kColumns), unsigned((k + vectors - 1) / vectors));
  return MFAC_LAUNCH((window_combine_kernel<T, V, width, vectors>), grid, dim3(kCombineThreads), stream, window, scales,
                     stride, m, d, coefficients, k, alpha, beta, out, out_stride);
}

}  // namespace

template <typename T, typename V>
int window_combine(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d,
                   const double* coefficients, int64_t k, double alpha, double beta, V* out, int64_t out_stride,
                   void* stream) {
  if (d == 0 || k == 0) return 0;
  // Vectors that share a pass: as many as leave a thread 32 sums of float64.
  constexpr int kShared = std::is_same_v<T, int8_t> ? 2 : 4;
  const auto launch = [&](auto width, auto vectors) {
    return launch_combine<T, V, decltype(width)::value, decltype(vectors)::value>(
        window, scales, stride, m, d, coefficients, k, alpha, beta, out, out_stride, stream);
  };
  using Packed = std::integral_constant<int, kPacket<T>>;
  using Single = std::integral_constant<int, 1>;
  using Shared = std::integral_constant<int, kShared>;
  if (is_aligned(window, stride)) return k == 1 ? launch(Packed(), Single()) : launch(Packed(), Shared());
  return k == 1 ? launch(Single(), Single()) : launch(Single(), Shared());
}

#define MFAC_INSTANCE(T, V)                                                                                            \
  template int window_combine<T, V>(const T*, const float*, int64_t, int64_t, int64_t, const double*, int64_t, double, \
                                    double, V*, int64_t, void*);
MFAC_FOR_WINDOWS_AND_VECTORS(MFAC_INSTANCE)
#undef MFAC_INSTANCE

}  // namespace mfac::cuda
