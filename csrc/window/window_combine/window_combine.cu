// Launcher of window_combine_: one launch.
#include "cuda/output.cuh"
#include "window/window_combine/window_combine.cuh"

namespace mfac::cuda {

template <typename T, typename V>
int window_combine(const T* window, const float* scales, int64_t stride, int64_t m, int64_t d,
                   const double* coefficients, int64_t k, double alpha, double beta, V* out, int64_t out_stride,
                   void* stream) {
  if (d == 0 || k == 0) return 0;
  // Vectors that share a pass: as many as leave a thread 32 sums of float64.
  constexpr int kShared = std::is_same_v<T, int8_t> ? 2 : 4;
  const auto launch = [&](auto width, auto vectors) {
    constexpr int kWidth = decltype(width)::value, kVectors = decltype(vectors)::value;
    return launch_combine<T, kWidth, kVectors>(window, scales, stride, m, d, coefficients, k, 0,
                                               ceil_div(d, kWarp * kWidth),
                                               Combination<V>{out, out_stride, alpha, beta}, stream);
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
